"""Where text comes from: every format gives the same documents, and every fault is named."""

import gzip
import io
import json
import multiprocessing
import os
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

import corpus.reading
import corpus.sources
import corpus.writer
import prepare_data
from corpus.compressed import read_chunks
from corpus.reading import Cursor, read_batches
from corpus.sources import find_units
from nanoloop.data import Data
from nanoloop.options import UserError
from prepare_data import PrepareConfig, prepare
from tests.conftest import make_documents

TEXTS = make_documents(40) + ["naïve café\n", "日本語\n\n", "a<|endoftext|>b"]
COMPRESS = {
    "gzip": gzip.compress,
    "zstandard": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def prepared(tmp_path, source, name="d", **more) -> Data:
    sources = source if isinstance(source, tuple) else (str(source),)
    defaults = {"tokenizer": "byte", "val_fraction": 0.2, "test_fraction": 0.2}
    return Data(prepare(PrepareConfig(source=sources, name=name, **(defaults | more)), tmp_path))


def trained(tmp_path, source, **more) -> Data:
    """Prepare with all documents in train."""
    return prepared(tmp_path, source, val_fraction=0, test_fraction=0, **more)


def texts_of(data: Data) -> list[str]:
    texts = []
    for stream in data.splits.values():
        if len(stream):
            text = data.tokenizer.decode(stream.read(0, len(stream)))
            texts += text.split("<|endoftext|>")[1:]
    return texts


def notes_of(data: Data) -> dict[str, int]:
    return {note: row["documents"] for note, row in data.meta["notes"].items()}


def places_of(data: Data, note: str) -> list[str]:
    return [where for _, where, _ in data.meta["notes"][note]["examples"]]


def json_lines(texts, key="text") -> bytes:
    rows = [json.dumps({"id": index, key: text}) for index, text in enumerate(texts)]
    return "".join(row + "\n" for row in rows).encode()


# --------------------------------------------------------------------------------------------------
# Formats


def write_parquet(path):
    table = pyarrow.table({"n": list(range(len(TEXTS))), "text": TEXTS})
    parquet.write_table(table, path, row_group_size=7)


def write_arrow(path):
    """As save_to_disk of the library datasets does."""
    path.mkdir()
    table = pyarrow.table({"text": TEXTS})
    with pyarrow.OSFile(str(path / "data-0.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    (path / "state.json").write_text("{}")


def write_members(path):
    members = [gzip.compress(json_lines(part)) for part in (TEXTS[:9], TEXTS[9:])]
    path.write_bytes(b"".join(members))


FORMATS = {
    "a.jsonl": lambda path: path.write_bytes(json_lines(TEXTS)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(TEXTS))),
    "members.jsonl.gz": write_members,
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(json_lines(TEXTS))),
    "a.parquet": write_parquet,
    "saved": write_arrow,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Data:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "a.json").write_bytes(json_lines(TEXTS))
    return prepared(folder, folder / "a.json", tokenizer="bpe:300", text_key="text")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tokens(tmp_path, plain, name):
    FORMATS[name](tmp_path / name)
    data = prepared(tmp_path, tmp_path / name, tokenizer="bpe:300")
    assert data.fingerprint == plain.fingerprint


def test_compressed_text_is_text_whatever_its_name(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt.gz").write_bytes(gzip.compress(b"first text"))
    (tmp_path / "s" / "b.txt").write_bytes(zstandard.compress(b"second text"))
    assert texts_of(trained(tmp_path, tmp_path / "s")) == ["first text", "second text"]


def test_another_field_can_hold_the_text_and_a_wrong_one_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y"], key="body"))
    data = trained(tmp_path, tmp_path / "a.jsonl", text_key="body")
    assert texts_of(data) == ["x", "y"]
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text': give --text_key, one of body$"):
        prepared(tmp_path, tmp_path / "a.parquet", name="p")


def test_tables_are_read_without_the_files_that_describe_them(tmp_path):
    (tmp_path / "s").mkdir()
    write_parquet(tmp_path / "s" / "a.parquet")
    (tmp_path / "s" / "README.md").write_text("about these tables")
    assert "about these tables" not in texts_of(prepared(tmp_path, tmp_path / "s"))


def test_folders_globs_and_files_give_files_in_a_fixed_order(tmp_path):
    folder = tmp_path / "s"
    (folder / "deep").mkdir(parents=True)
    for name in ("c.txt", "a.txt", "b.txt", ".hidden", "deep/d.txt"):
        (folder / name).write_text("x")

    def found(*sources):
        config = SimpleNamespace(source=tuple(map(str, sources)), text_key=None, name="d")
        units = find_units(config, tmp_path)
        units = [unit for unit in units if unit.note is None]
        return [(os.path.basename(unit.path), os.path.basename(unit.source)) for unit in units]

    ordered = [("a.txt", "s"), ("b.txt", "s"), ("c.txt", "s"), ("d.txt", "deep")]
    assert found(folder) == ordered
    names = [name for name, _ in found(folder / "*b.txt", folder / "a.txt")]
    assert names == ["b.txt", "a.txt"]
    names = [name for name, _ in found(folder / "b.txt", folder)]
    assert names == ["b.txt", "a.txt", "c.txt", "d.txt"]  # each once


@pytest.mark.parametrize("text_key", [None, "text"])
def test_standard_input_is_a_text_or_with_text_key_json_lines(tmp_path, monkeypatch, text_key):
    content = json_lines(TEXTS) if text_key else "".join(TEXTS).encode()
    (tmp_path / ".d.0123456789abcdef.stdin").touch()  # a process that was killed has left it
    (tmp_path / "d.mine.stdin").touch()
    (tmp_path / ".d.e.0123456789abcdef.stdin").touch()  # of a preparation of d.e
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    data = prepared(tmp_path, "-", text_key=text_key)
    # One text spells the separator. A text is split in three.
    assert len(texts_of(data)) == (len(TEXTS) + 1 if text_key else 4)
    n_bytes = sum(split["bytes"] for split in data.meta["splits"].values())
    assert n_bytes == len("".join(TEXTS).encode())
    left = sorted(path.name for path in tmp_path.glob("*.stdin"))
    assert left == [".d.e.0123456789abcdef.stdin", "d.mine.stdin"]


def test_synthetic_text_keeps_its_own_splits(tmp_path):
    options = {"max_documents": 200, "val_fraction": 0.5, "workers": 1}
    data = prepared(tmp_path, "synthetic:addition", **options)
    assert sum(split["documents"] for split in data.meta["splits"].values()) == 200
    lines = {}
    for split, stream in data.splits.items():
        text = data.tokenizer.decode(stream.read(0, len(stream)))
        lines[split] = set(text.replace("<|endoftext|>", "").splitlines())
    assert lines["val"]
    assert not lines["train"] & (lines["val"] | lines["test"])


def test_a_hub_without_a_network_names_the_ways_without_one(tmp_path, monkeypatch, command):
    datasets = pytest.importorskip("datasets")

    def download(*arguments, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", download)
    monkeypatch.chdir(tmp_path)
    result = command(prepare_data.main, "--source=hf:roneneldan/TinyStories")
    assert result.code == 2
    assert "Traceback" not in result.err
    words = "hf:roneneldan/TinyStories ConnectionError --local-dir=FOLDER --source=FOLDER"
    for word in [*words.split(), "--source=python"]:
        assert word in result.err
    assert not list(tmp_path.glob("data/*"))


def test_a_hub_data_set_is_streamed_by_the_library(tmp_path, monkeypatch, plain):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    load_dataset = datasets.load_dataset
    asked = {}

    def load_local(name, config, **options):
        asked.update(options, name=name, config=config)
        return load_dataset("json", data_files=str(tmp_path / "a.jsonl"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    more = {"hf_config": "small", "hf_split": "train", "tokenizer": "bpe:300", "workers": 1}
    data = prepared(tmp_path, "hf:some/name", **more)
    assert data.fingerprint == plain.fingerprint
    assert asked == {"name": "some/name", "config": "small", "split": "train", "streaming": True}


# --------------------------------------------------------------------------------------------------
# Compressed files


def content_of(path) -> bytes:
    return b"".join(read_chunks(path))


def good_part_of(path) -> tuple[bytes, Exception]:
    """Return the content before the fault of a file, and the fault."""
    content = b""
    try:
        for chunk in read_chunks(path):
            content += chunk
    except Exception as error:
        return content, error
    pytest.fail("there is no fault")


NOISE = np.random.default_rng(0).bytes(300_000)
CONTENT = NOISE + b"a line of text\n" * 200_000
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_joined_compressed_files_are_one_file(tmp_path, compress):
    (tmp_path / "a").write_bytes(compress(CONTENT) + compress(b"") + compress(b"the end"))
    assert content_of(tmp_path / "a") == CONTENT + b"the end"


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_small_file_of_much_content_is_read_in_pieces(tmp_path, compress):
    """Eighty megabytes of zeros are less than 0.1 MB, and are never held at once."""
    (tmp_path / "a").write_bytes(compress(bytes(80_000_000)))
    assert (tmp_path / "a").stat().st_size < 100_000
    sizes = [len(chunk) for chunk in read_chunks(tmp_path / "a")]
    assert sum(sizes) == 80_000_000
    assert max(sizes) < 20_000_000


def test_skippable_frames_are_skipped(tmp_path):
    frames = [SKIPPABLE, zstandard.compress(CONTENT), SKIPPABLE, zstandard.compress(b"end")]
    (tmp_path / "a").write_bytes(b"".join([*frames, SKIPPABLE]))
    assert content_of(tmp_path / "a") == CONTENT + b"end"


def test_a_window_longer_than_the_default_is_read(tmp_path):
    """zstd --long=29 needs 512 MB to look back; the library's default is 128 MB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    compressed = compressor.compress(CONTENT) + compressor.flush()
    assert zstandard.get_frame_parameters(compressed).window_size == 2**29
    (tmp_path / "a").write_bytes(compressed)
    assert content_of(tmp_path / "a") == CONTENT


def test_gzip_with_padding_is_read(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(CONTENT) + bytes(512))
    assert content_of(tmp_path / "a") == CONTENT


FAULTS = {
    "truncated": lambda packed: packed[: len(packed) * 2 // 3],
    "one byte short": lambda packed: packed[:-1],
    "damaged": lambda packed: packed[:250_000] + bytes(100) + packed[250_100:],
    "followed by something else": lambda packed: packed + b"something else",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_fault_gives_what_is_before_it_and_an_error(tmp_path, compress, fault):
    (tmp_path / "a").write_bytes(FAULTS[fault](compress(NOISE) + compress(b"the end")))
    content, _ = good_part_of(tmp_path / "a")
    assert len(content) > (100_000 if fault != "one byte short" else 290_000)
    assert (NOISE + b"the end").startswith(content[:190_000])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_truncated_compressed_file_is_a_note_and_the_next_file_is_read(tmp_path, compress, name):
    rng = np.random.default_rng(0)
    texts = [rng.bytes(500).hex() for _ in range(400)]
    packed = compress(json_lines(texts))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(packed[: len(packed) * 5 // 8])
    (tmp_path / "s" / "b.txt").write_text("the next file")
    data = trained(tmp_path, tmp_path / "s")
    found = "".join(texts_of(data))
    assert texts[100] in found
    assert found.endswith("the next file")
    assert notes_of(data)["corrupt file"] == 1


def test_a_wrong_checksum_is_a_corrupt_file_not_an_unreadable_one(tmp_path):
    """Python counts a wrong checksum of gzip among the errors of the system."""
    packed = bytearray(gzip.compress(b"text " * 99))
    packed[-8] ^= 1
    (tmp_path / "a.txt.gz").write_bytes(packed)
    (tmp_path / "b.txt").write_text("the next file")
    data = trained(tmp_path, (str(tmp_path / "a.txt.gz"), str(tmp_path / "b.txt")))
    assert notes_of(data) == {"corrupt file": 1}
    assert texts_of(data) == ["text " * 99, "the next file"]


# --------------------------------------------------------------------------------------------------
# Ready tokens


def write_shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240520, 1, len(tokens))
    path.write_bytes(header.tobytes() + np.array(tokens, dtype="<u2").tobytes())


def test_llm_cs_shards_are_linked_as_they_are(tmp_path, data_dir):
    (tmp_path / "s").mkdir()
    write_shard(tmp_path / "s" / "x_train_000001.bin", [256, 65])
    write_shard(tmp_path / "s" / "x_train_000002.bin", [66, 256, 67])
    write_shard(tmp_path / "s" / "x_val_000000.bin", [256, 68])
    data = prepared(tmp_path, tmp_path / "s", tokenizer=str(data_dir))
    assert data.splits["train"].read(0, 5).tolist() == [256, 65, 66, 256, 67]
    assert data.splits["val"].read(0, 2).tolist() == [256, 68]
    assert data.meta["splits"]["train"] == {"documents": 2, "tokens": 5, "bytes": 3}
    assert os.path.samefile(tmp_path / "s" / "x_val_000000.bin", data.folder / "val_000000.bin")


def test_shards_without_a_validation_split_are_refused(tmp_path, data_dir):
    write_shard(tmp_path / "b.bin", range(60, 100))
    write_shard(tmp_path / "a.bin", range(60))
    with pytest.raises(UserError, match="none of these 2 token files has 'val' in its name"):
        prepared(tmp_path, tmp_path / "*.bin", tokenizer=str(data_dir))


def test_ready_tokens_and_text_are_prepared_separately(tmp_path, data_dir):
    write_shard(tmp_path / "a_val.bin", [256, 30])
    (tmp_path / "a.txt").write_text("text")
    sources = (str(tmp_path / "a_val.bin"), str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="ready tokens, others are text: prepare them separately"):
        prepared(tmp_path, sources, tokenizer=str(data_dir))


def test_shards_of_another_tokenizer_and_damaged_ones_are_refused(tmp_path, data_dir):
    path = tmp_path / "a_val.bin"
    write_shard(path, [256, 300])
    for tokenizer in (str(data_dir), "bpe:300"):  # there is no text to train one on
        with pytest.raises(UserError, match="token 300.*has 257.*--tokenizer"):
            prepared(tmp_path, path, tokenizer=tokenizer)
    write_shard(path, [256, 30])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="a_val.bin is truncated"):
        prepared(tmp_path, path, tokenizer=str(data_dir))


def test_nanogpts_numbered_characters_are_refused_with_the_command_for_their_text(tmp_path):
    """Read as bytes they would be another text. What names them is a pickle, which can run code."""
    for name in ("train.bin", "val.bin", "meta.pkl"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")
    for tokenizer in (None, "byte"):
        command = f"--source='{tmp_path}/input.txt' --tokenizer=byte --val_fraction=0.1"
        with pytest.raises(UserError, match=f"train.bin numbers the characters.*{command}"):
            prepared(tmp_path, tmp_path, tokenizer=tokenizer)


def test_nanogpts_gpt2_tokens_are_imported(tmp_path, data_dir):
    """The default tokenizer would be gpt2."""
    (tmp_path / "owt").mkdir()
    np.array([65, 66, 256], dtype=np.uint16).tofile(tmp_path / "owt" / "train.bin")
    np.array([67, 256], dtype=np.uint16).tofile(tmp_path / "owt" / "val.bin")
    data = prepared(tmp_path, tmp_path / "owt", tokenizer=str(data_dir))
    assert data.splits["train"].read(0, 3).tolist() == [65, 66, 256]
    assert data.splits["val"].read(0, 2).tolist() == [67, 256]


# --------------------------------------------------------------------------------------------------
# Faults


def test_broken_json_lines_are_counted_with_their_line(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"",
        b"{broken",
        b'{"text": 3}',
        b'["text"]',
        b'{"text": ""}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud83d\\ude00 \\ud83d"}',
        b'{"other": "x"}',
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(lines))
    data = trained(tmp_path, tmp_path / "a.jsonl")
    assert texts_of(data) == ["good", "�", "😀 ���", "last"]
    assert notes_of(data) == {
        "broken JSON": 2,
        "int instead of text": 1,
        "list instead of text": 1,
        "no field 'text': give --text_key": 1,
        "empty": 1,
        "invalid UTF-8 replaced": 2,
    }
    examples = [f"{tmp_path}/a.jsonl:3", f"{tmp_path}/a.jsonl:10"]
    assert places_of(data, "broken JSON") == examples


def test_a_file_that_cannot_be_read_is_counted_and_the_next_one_is_read(tmp_path):
    (tmp_path / "s").mkdir()
    for number in range(8):
        (tmp_path / "s" / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "s" / "3.txt").unlink()
    (tmp_path / "s" / "3.txt").symlink_to("nowhere")
    data = trained(tmp_path, tmp_path / "s")
    assert len(texts_of(data)) == 7
    assert notes_of(data) == {"unreadable": 1}
    assert places_of(data, "unreadable") == [f"{tmp_path}/s/3.txt"]


def test_a_damaged_table_is_counted_and_the_next_one_is_read(tmp_path):
    write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    (tmp_path / "u.parquet").write_bytes(b"")
    write_parquet(tmp_path / "v.parquet")
    data = prepared(tmp_path, tmp_path / "*.parquet")
    assert sum(notes_of(data).values()) == 2
    assert len(texts_of(data)) == len(TEXTS) + 1  # one text spells the separator


STRICT = {
    "a.jsonl": (b'{"text": "x"}\n{"text"', "a.jsonl:2: broken JSON"),
    "a.txt": (b"caf\xe9 " * 9, "a.txt: invalid UTF-8"),
    "a.txt.gz": (gzip.compress(b"text " * 99)[:-9], "a.txt.gz: corrupt"),
    "a.png": (b"\x89PNG\0", "a.png: binary"),
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_stops_at_the_first_fault_and_names_it(tmp_path, name):
    content, message = STRICT[name]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(content)
    (tmp_path / "s" / "empty.txt").touch()  # no text is no fault
    (tmp_path / "s" / "fine.txt").write_text("fine")
    with pytest.raises(UserError, match=message):
        trained(tmp_path, tmp_path / "s", strict=True)
    assert "fine" in texts_of(trained(tmp_path, tmp_path / "s"))


# --------------------------------------------------------------------------------------------------
# Size


@pytest.mark.parametrize("ending", ["\n", " ", "。", ""])
def test_a_long_text_becomes_several_documents_and_loses_nothing(tmp_path, monkeypatch, ending):
    """It is cut behind a line where there are lines, and never inside a character."""
    monkeypatch.setattr(corpus.reading, "PIECE", 997)
    (tmp_path / "s").mkdir()
    text = "".join(f"Word{i} naïve 日本 {i * 7919}{ending}" for i in range(300))
    (tmp_path / "s" / "a.txt").write_text(text)
    (tmp_path / "s" / "b.txt").write_text("another")
    data = trained(tmp_path, tmp_path / "s")
    *parts, last = texts_of(data)
    assert "".join(parts) == text
    assert last == "another"
    assert notes_of(data) == {}
    assert len(parts) > 8
    assert all(len(part.encode()) <= 1000 for part in parts)
    if ending == "\n":
        assert all(part.endswith("\n") for part in parts)


def test_a_single_text_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.reading, "PIECE", 100)
    text = "日本語🙂" * 99
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    data = prepared(tmp_path, tmp_path / "a.txt.gz", val_fraction=0.1, test_fraction=0.1)
    assert notes_of(data) == {}
    assert sorted("".join(texts_of(data))) == sorted(text)
    assert abs(data.meta["splits"]["val"]["bytes"] - 13 * 99 / 10) < 4


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_too_long_to_hold_is_left_out_and_named(tmp_path, monkeypatch, end):
    monkeypatch.setattr(corpus.reading, "LONGEST", 150_000)
    monkeypatch.setattr(corpus.reading, "BLOCK", 100_000)
    monkeypatch.setattr(corpus.compressed, "CHUNK", 100_000)
    texts = ["first", "x" * 500_000, "a" * 140_000, "y" * 260_000, "last", "z" * 400_000]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts).removesuffix(b"\n") + end)
    data = trained(tmp_path, tmp_path / "a.jsonl")
    assert texts_of(data) == ["first", "a" * 140_000, "last"]
    ((note, count),) = notes_of(data).items()
    assert count == 3
    assert places_of(data, note) == [f"{tmp_path}/a.jsonl:{line}" for line in (2, 4, 6)]


def test_a_cell_too_long_to_hold_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.reading, "LONGEST", 100)
    table = pyarrow.table({"text": ["first", "x" * 101, None, "last"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = trained(tmp_path, tmp_path / "a.parquet")
    assert texts_of(data) == ["first", "last"]
    assert notes_of(data) == {"too long for one line or cell": 1, "no text": 1}


def test_limits_end_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    few = trained(tmp_path, tmp_path / "a.jsonl", max_documents=7)
    assert texts_of(few) == TEXTS[:7]
    small = trained(tmp_path, tmp_path / "a.jsonl", name="b", max_bytes=1000)
    ends = np.cumsum([len(text) for text in TEXTS])
    assert small.meta["splits"]["train"]["documents"] == 1 + int(np.searchsorted(ends, 1000))


@pytest.mark.parametrize("blocks", [0, 1, 7])
def test_reading_from_a_cursor_gives_the_blocks_behind_it(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(corpus.reading, "BLOCK", 200)
    monkeypatch.setattr(corpus.compressed, "CHUNK", 200)
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 300)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(json_lines(TEXTS))
    config = PrepareConfig(source=(str(tmp_path),), name="d")
    units = find_units(config, tmp_path)

    def payloads(cursor):
        batches = list(read_batches(units, config, cursor))
        return [(unit.path, block.payload) for batch in batches for unit, block in batch.blocks]

    everything = payloads(Cursor(0, 0, 0))
    assert len(everything) > 20
    assert payloads(Cursor(0, blocks, 0)) == everything[blocks:]
    second = [row for row in everything if row[0].endswith("b.jsonl")]
    assert payloads(Cursor(1, blocks, 0)) == second[blocks:]


def test_a_shuffle_moves_documents_within_its_buffer_and_repeats_with_its_seed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 1)  # whole batches fill the buffer
    (tmp_path / "s").mkdir()
    for number in range(100):
        (tmp_path / "s" / f"{number:03}.txt").write_text(str(number))

    def shuffled(name, seed):
        return trained(tmp_path, tmp_path / "s", name=name, seed=seed, shuffle_buffer=25)

    first = shuffled("first", seed=0)
    found = [int(text) for text in texts_of(first)]
    for start in range(0, 100, 25):
        part = found[start : start + 25]
        assert sorted(part) == list(range(start, start + 25))
        assert part != sorted(part)
    assert first.fingerprint == shuffled("again", seed=0).fingerprint
    assert first.fingerprint != shuffled("other", seed=1).fingerprint


# --------------------------------------------------------------------------------------------------
# Processes


def write_files(folder, count: int):
    folder.mkdir()
    for number, text in enumerate(make_documents(count)):
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 1000)
    source = write_files(tmp_path / "s", 60)
    options = {"duplicates": "near", "duplicates_mb": 1}
    one = prepared(tmp_path / "one", source, **options)
    three = prepared(tmp_path / "three", source, workers=3, **options)
    for path in one.folder.glob("[!.]*"):  # a hidden note says when a reader checked the shards
        assert path.read_bytes() == (three.folder / path.name).read_bytes(), path.name


def test_a_killed_worker_is_named_and_the_preparation_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 1000)
    monkeypatch.setattr(corpus.writer, "COMMIT_SECONDS", 0)
    source = write_files(tmp_path / "s", 60)
    expected = prepared(tmp_path / "expected", source)
    commit = corpus.writer.Writer.commit

    def commit_and_kill_the_workers(writer, cursor):
        commit(writer, cursor)
        for child in multiprocessing.active_children():
            child.kill()

    with monkeypatch.context() as patched:
        patched.setattr(corpus.writer.Writer, "commit", commit_and_kill_the_workers)
        with pytest.raises(UserError, match=r"a worker was killed \(out of memory\?\).*it resumes"):
            prepared(tmp_path, source, workers=2)
    assert (tmp_path / ".d.partial").exists()
    assert prepared(tmp_path, source).fingerprint == expected.fingerprint
