"""A folder with one file of every kind that people bring, prepared in one command."""

import gzip
import html
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import prepare_data
from nanoloop.data import Data
from tests.conftest import make_documents
from tests.every_format import arrow, not_readable, readable

# Of the readable files, those that are one document.
WHOLE = [
    name for name in readable(["x"]) if name.startswith(("text", "utf", "no s", "a m", "comp"))
]
# Files that are read with a fault: their bytes, their documents, and the fault.
FAULTY = {
    "page.html": (b"<html><p>a page</p>", ["<html><p>a page</p>"], "HTML, read with its tags"),
    "latin 1.txt": (b"na\xefve", ["na\ufffdve"], "invalid UTF-8 replaced"),
    "zero.txt": (b"a zero\0" + b"byte " * 9, ["a zero" + "byte " * 9], "zero bytes, without"),
    "uneven.csv": (b"n,text\n1,a row\n2,she said, hi\n", ["a row"], "more or fewer columns"),
    "cut.csv.gz": (gzip.compress(b"n,text\n1,a cut row\n")[:-4], ["a cut row"], "corrupt file"),
    "cut.json": (b'[{"text": "a value"}, {"te', ["a value"], "broken JSON: the rest"),
    "line.jsonl": (b'{"text": "a line"}\n{"te\n', ["a line"], "broken JSON"),
    "field.jsonl": (b'{"text": "a field"}\n{"body": "x"}\n', ["a field"], "no field 'text'"),
    "number.json": (b'{"text": "a text"}\n{"text": 5}\n', ["a text"], "int instead of text"),
    "null.json": (b'{"text": "not null"}\n{"text": null}\n', ["not null"], "no text"),
}
# Files that are left out, and the beginning of the reason.
NOTES = {
    "page.pdf": "PDF: ",
    "page.ps": "PostScript: ",
    "letter.rtf": "RTF: ",
    "letter.docx": "zip (",
    "letter.doc": "an old document of Office: ",
    "a.tar": "tar: ",
    "a.tar.xz": "tar: ",
    "a.7z": "7z: ",
    "a.rar": "rar: ",
    "a.lz4": "lz4: ",
    "a.db": "SQLite: ",
    "a.npy": "an array of NumPy: ",
    "a.avro": "Avro: ",
    "crawl.warc.gz": "web pages in WARC: ",
    "pointer.parquet": "only a link of Git LFS: ",
    "table.parquet.gz": "a table in a compressed file: ",
    "picture.png": "binary",
    "program": "binary",
    "empty.txt": "empty",
    "empty.json": "empty",
    "empty.gz": "empty",
    ".hidden.txt": "left out: hidden",
    "README.md": "left out: describes what is beside it",
    "text2.txt": "left out: another name",
    "circle": "left out: another name",
    "nowhere.txt": "unreadable",
    "pipe": "left out: neither a file nor a folder",
    "old": "left out: a prepared folder",
    "saved/cache-0123456789abcdef.arrow": "left out: not in state.json",
    "hub/blobs": "left out: not in refs/main",
}
INDEXES = ["saved/state.json", "hub/refs/main"]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def texts_of(number: int) -> list[str]:
    """Return documents that no other number has."""
    return [f"file {number}: {text}" for text in make_documents(6, number)]


def write_data_sets(folder: Path, texts: list[str]) -> dict[str, list[str]]:
    """Write data sets as the library datasets and the hub's cache keep them, a text in each."""
    tables = [pyarrow.table({"text": [text]}) for text in texts]
    write(folder / "saved/data.arrow", arrow(tables[0], pyarrow.ipc.new_stream))
    write(folder / "saved/cache-0123456789abcdef.arrow", b"a cache")
    index = {"_data_files": [{"filename": "data.arrow"}]}
    write(folder / "saved/state.json", json.dumps(index).encode())
    write(folder / "hub/refs/main", b"abc")
    write(folder / "hub/blobs/x", b"")
    pyarrow.parquet.write_table(tables[1], folder / "hub/blobs/x")
    (folder / "hub/snapshots/abc").mkdir(parents=True)
    os.symlink("../../blobs/x", folder / "hub/snapshots/abc/a.parquet")
    (folder / "wiki").mkdir()
    pyarrow.parquet.write_table(tables[2], folder / "wiki/validation-00000.parquet")
    names = ["saved/data.arrow", "hub/snapshots/abc/a.parquet", "wiki/validation-00000.parquet"]
    return {name: [text] for name, text in zip(names, texts)}


@pytest.fixture
def expected(tmp_path, monkeypatch, data_dir) -> dict[str, list[str]]:
    """Write the folder "mine"; return the documents of each file that is read."""
    monkeypatch.chdir(tmp_path)
    folder = Path("mine")
    documents = write_data_sets(folder, texts_of(1000)[:3])
    for number, name in enumerate(readable(["x"])):
        texts = texts_of(number)
        content = readable(texts)[name]
        write(folder / name, content)
        documents[name] = ["".join(texts)] if name in WHOLE else texts
    for name, content in not_readable("some text").items():
        write(folder / name, content)
    for name, (content, texts, _) in FAULTY.items():
        write(folder / name, content)
        documents[name] = texts
    write(folder / ".hidden.txt", b"hidden")
    write(folder / "README.md", b"about the tables")
    write(folder / os.fsdecode(b"caf\xe9.txt"), b"a name that is no UTF-8")
    documents["caf\udce9.txt"] = ["a name that is no UTF-8"]
    os.symlink("text.txt", folder / "text2.txt")
    os.symlink("nothing", folder / "nowhere.txt")
    os.symlink(".", folder / "circle")
    os.mkfifo(folder / "pipe")
    shutil.copytree(data_dir, folder / "old")
    return documents


def documents_of(data: Data, split: str) -> list[str]:
    stream = data.splits[split]
    text = data.tokenizer.decode(stream.read(0, len(stream)))
    return text.split("<|endoftext|>")[1:]


def name_of(where: str) -> str:
    """Return the file of "mine/FILE:LINE, …" or "mine/FILE row NUMBER"."""
    return re.sub(r"(:\d+.*| row \d+)$", "", where.removeprefix("mine/"))


def test_every_file_is_read_or_counted_under_a_reason(expected, command):
    result = command(prepare_data.main, "--source=mine", "--tokenizer=byte")
    assert result.code == 0, result.err
    data = Data(Path("data/mine"))
    found = {split: documents_of(data, split) for split in ("train", "val", "test")}
    documents = [text for texts in expected.values() for text in texts]
    assert Counter(sum(found.values(), [])) == Counter(documents)
    assert found["val"] == expected["wiki/validation-00000.parquet"]

    notes = data.meta["notes"]
    places = [(where, note) for note, row in notes.items() for _, where, _ in row["examples"]]
    reasons = {name_of(where): note for where, note in places}
    assert sum(row["documents"] for row in notes.values()) == len(reasons)
    assert reasons.keys() == NOTES.keys() | FAULTY.keys()
    beginnings = NOTES | {name: note for name, (_, _, note) in FAULTY.items()}
    assert all(reasons[name].startswith(note) for name, note in beginnings.items())
    for path in Path("mine").rglob("*"):
        names = {str(part.relative_to("mine")) for part in [path, *path.parents][:-2]}
        assert path.is_dir() or names & {*expected, *reasons, *INDEXES}, path


def test_a_newcomer_finds_the_counts_in_the_report(expected, command):
    command(prepare_data.main, "--source=mine", "--tokenizer=byte", "--quality=min_words=5")
    figures = json.loads(Path("data/mine/report.json").read_bytes())
    n_dropped = sum(row["documents"] for row in figures["dropped"].values())
    assert n_dropped > 0
    n_read = figures["kept"]["documents"] + n_dropped
    assert n_read == sum(map(len, expected.values()))
    page = html.unescape(Path("data/mine/report.html").read_text())
    for note, row in figures["notes"].items():
        assert note in page
        assert row["examples"][0][1] in page
