"""What a file holds decides how it is read, whatever its name; what is no text is named."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

import corpus.compressed
import corpus.reading
from corpus.curation import CurationConfig
from corpus.documents import BatchReader
from corpus.formats import PACKED_TABLE
from corpus.reading import Cursor, read_batches
from corpus.sources import find_units
from nanoloop.options import UserError
from prepare_data import PrepareConfig

TEXTS = [
    "first, with a comma",
    'second\nin two lines, "quoted"',
    "日本語のテキスト; naïve",
    "{last}",
]
LATIN = "Text of Latin letters, line by line.\n" * 9
JAPANESE = "一つ目の行です。二つ目の文もあります。\r\n　次の段落。\r\n" * 90


def read(path, **options):
    """Return the texts of a file or folder, and its notes: {note: where}."""
    fractions = {"val_fraction": 0, "test_fraction": 0}
    config = PrepareConfig(source=(str(path),), name="d", **fractions, **options)
    units = find_units(config, Path("data"))
    reader = BatchReader(config, tokenizer=None)
    batches = read_batches(units, config, Cursor(0, 0, 0))
    rows = [row for batch in batches for row in reader(batch)[1]]
    notes = {row.note: row.where for row in rows if row.note}
    return [row.content.decode() for row in rows if row.content], notes


def read_bytes(tmp_path, name, content, **options):
    (tmp_path / name).write_bytes(content)
    return read(tmp_path / name, **options)


# --------------------------------------------------------------------------------------------------
# Formats


def rows_of(key="text"):
    return [{"id": number, key: text} for number, text in enumerate(TEXTS)]


def lines(key="text"):
    return "".join(json.dumps(row) + "\n" for row in rows_of(key))


def csv(delimiter, line_end="\n"):
    rows = [["id", "text"], *([str(n), text] for n, text in enumerate(TEXTS))]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(delimiter.join(row) + line_end for row in quoted)


def arrow(table, new=pyarrow.ipc.new_file):
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


SPREAD = "\n".join(json.dumps(row, indent=2) for row in rows_of())
FORMATS = {
    "a list.json": json.dumps(rows_of()).encode(),
    "an indented list.json.gz": gzip.compress(json.dumps(rows_of(), indent=1).encode()),
    "objects over lines.json": SPREAD.encode(),
    "a list of texts.json": json.dumps(TEXTS).encode(),
    "lines.json": lines().encode(),
    "lines.NDJSON": lines().encode(),
    "a list in lines.JSONL.xz": lzma.compress(json.dumps(rows_of()).encode()),
    "lines in text.txt": lines().encode(),
    "list, no suffix": json.dumps(rows_of()).encode(),
    "of Windows.json": lines().encode("utf-16"),
    "comma.csv": csv(",").encode(),
    "semicolon.CSV.bz2": bz2.compress(csv(";", "\r\n").encode("utf-8-sig")),
    "tab.tsv.zst": zstandard.compress(csv("\t").encode("utf-16")),
    "file.arrow": arrow(pyarrow.table({"text": TEXTS})),
    "arrow, no suffix": arrow(pyarrow.table({"text": TEXTS}), pyarrow.ipc.new_stream),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_content_decides_the_format(tmp_path, name):
    assert read_bytes(tmp_path, name, FORMATS[name]) == (TEXTS, {})


# Within the buffer of eight bytes but not in order, one byte behind it, and far behind it.
WRONG_OFFSETS = [(0, -4, 8), (0, 9, 8), (0, 4, 9), (0, 4, 2**30), (2**30, 2**30 + 4, 2**30 + 8)]


@pytest.mark.parametrize("new", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
@pytest.mark.parametrize("kind", ["string", "large_string", "binary"])
@pytest.mark.parametrize("wrong", WRONG_OFFSETS)
def test_a_table_with_wrong_offsets_is_a_corrupt_file(tmp_path, wrong, kind, new):
    """Arrow would end the process at such a cell, or return what else is in memory."""
    column = pyarrow.array(["some", "more"]).cast(kind)
    good = arrow(pyarrow.table({"text": column}), new)
    pack = struct.Struct("<3q" if kind == "large_string" else "<3i").pack
    assert good.count(pack(0, 4, 8)) == 1
    damaged = good.replace(pack(0, 4, 8), pack(*wrong))
    texts, notes = read_bytes(tmp_path, "a.arrow", damaged)
    assert (texts, notes) == ([], {"corrupt file": f"{tmp_path}/a.arrow"})
    with pytest.raises(UserError, match="a.arrow cannot be read"):
        CurationConfig(decontaminate=str(tmp_path / "a.arrow"))


def test_a_table_with_wrong_views_is_a_corrupt_file(tmp_path):
    texts = ["The first text is longer than twelve bytes.", "The second one is as long."]
    good = arrow(pyarrow.table({"text": pyarrow.array(texts, type=pyarrow.string_view())}))
    assert read_bytes(tmp_path, "a.arrow", good) == (texts, {})
    view = struct.pack("<i4sii", len(texts[1]), b"The ", 0, len(texts[0]))
    assert good.count(view) == 1
    damaged = good.replace(view, view[:-4] + struct.pack("<i", 2**30))
    assert read_bytes(tmp_path, "a.arrow", damaged) == ([], {"corrupt file": f"{tmp_path}/a.arrow"})


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["t.arrow", "t.parquet", "t", "t.parquet.gz"])
def test_a_table_in_a_compressed_file_is_named_whatever_its_name(tmp_path, name, compress):
    table = FORMATS["file.arrow"]
    texts, notes = read_bytes(tmp_path, name, compress(table))
    assert texts == [] and list(notes) == [PACKED_TABLE]
    assert read_bytes(tmp_path, name, table) == (TEXTS, {})


@pytest.mark.parametrize("content", [lines("body"), csv(",").replace("text", "body")])
def test_with_a_key_a_file_of_any_name_can_hold_fields(tmp_path, content):
    assert read_bytes(tmp_path, "a.dump", content.encode(), text_key="body") == (TEXTS, {})


TEXT = {
    "list.py": "[print(x) for x in range(3)]\n",
    "set.py": '{"text"}\nx = 2\n',
    "rows.py": '[{"text": 1}][0]\nx = 2\n',
    "template.html.j2": "{% for x in y %}{{ x }}{% endfor %}",
    "prose.txt": "[Verse 1]\nSome words\n",
    "config": '{\n  "name": "x"\n}\n',
    "settings.toml": "[text]\nkey = 1\n",
    "columns": "id,text\nare two words\n",
    "math.tex": "{\\bf bold}",
    "numbers": "[1, 2]\n[3, 4]\n",
}


@pytest.mark.parametrize("name", TEXT)
def test_source_code_and_prose_that_begin_with_a_bracket_stay_text(tmp_path, name):
    assert read_bytes(tmp_path, name, TEXT[name].encode()) == ([TEXT[name]], {})


def archive():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    return sink.getvalue()


def office_document():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("word/document.xml", "<w/>")
    return sink.getvalue()


NO_TEXT = {
    "paper.txt": (b"%PDF-1.7\n%\xe2\xe3", "PDF: make text of it with pdftotext"),
    "letter.json": (b"{\\rtf1\\ansi Hello}", "RTF: make text of it with pandoc"),
    "notes.docx": (office_document(), "zip .*pandoc"),
    "backup.tgz": (archive(), "tar: open it with tar -xf"),
    "pages.gz": (gzip.compress(b"WARC/1.0\r\n"), "web pages in WARC: .*trafilatura"),
    "a.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS: type git lfs pull"),
    "b.arrow.gz": (gzip.compress(arrow(pyarrow.table({"a": [1]}))), "unpack it first, with gunzip"),
    "song": (b"ID3\x04\0\0\0\0\0\1" + bytes(range(256)), "binary"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_named_with_what_opens_it(tmp_path, name):
    content, expected = NO_TEXT[name]
    texts, notes = read_bytes(tmp_path, name, content)
    assert texts == []
    (note,) = notes
    assert re.search(expected, note)


def test_html_is_read_and_named(tmp_path):
    page = "\n<!DOCTYPE html>\n<html><body>Words</body></html>"
    (tmp_path / "s").mkdir()
    for name, text in {"a": page, "b.HTM.gz": "<p>part", "c.py": 'page = "<html>"'}.items():
        (tmp_path / "s" / name).write_text(text)
    texts, notes = read(tmp_path / "s")
    assert texts == [page, "<p>part", 'page = "<html>"']
    ((note, where),) = notes.items()
    assert note.startswith("HTML, read with its tags (trafilatura")
    assert where == f"{tmp_path}/s/b.HTM.gz"  # the last of two


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("source", ["a.txt", "synthetic:addition"])
def test_a_text_key_that_nothing_uses_is_refused(tmp_path, monkeypatch, source, strict):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    config = PrepareConfig(source=(source,), name="d", text_key="body", strict=strict)
    with pytest.raises(UserError, match=f"--text_key=body names .*--source={source} has neither"):
        find_units(config, tmp_path)


# --------------------------------------------------------------------------------------------------
# Fields and columns


NESTED = {"meta.text": "literal", "meta": {"text": "nested", "deep": {"er.text": "deep"}}, "n": 1}
KEYS = {"meta.text": "literal", "meta.deep.er.text": "deep"}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_a_key_leads_into_a_field_unless_a_name_contains_its_dot(tmp_path, name, key):
    table = pyarrow.Table.from_pylist([NESTED])
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    contents = {
        "a.jsonl": json.dumps(NESTED).encode(),
        "a.json": json.dumps([NESTED], indent=1).encode(),
        "a.parquet": sink.getvalue(),
        "a.arrow": arrow(table),
    }
    assert read_bytes(tmp_path, name, contents[name], text_key=key) == ([KEYS[key]], {})


def test_a_wrong_field_is_named_with_the_fields_that_are_there(tmp_path):
    rows = [
        {"body": "x", "meta": {"id": 3, "tags": {}}, "more": {}},
        {"text": {"en": "y"}},
        {"text": ["x"]},
        7,
        {"text": None},
    ]
    texts, notes = read_bytes(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert texts == []
    assert notes == {
        "no field 'text': give --text_key": (
            f"{tmp_path}/a.jsonl:1, which has body, meta.id, meta.tags, more"
        ),
        "dict instead of text": f"{tmp_path}/a.jsonl:2, which has text.en",
        "list instead of text": f"{tmp_path}/a.jsonl:3",
        "int instead of text": f"{tmp_path}/a.jsonl:4",
        "no text": f"{tmp_path}/a.jsonl:5",
    }


COLUMNS = {"n": "int64", "rows": "list<element: string>", "meta": "struct<text: string>"}


@pytest.mark.parametrize("key", COLUMNS)
def test_a_column_without_text_is_named_as_what_it_is(tmp_path, key):
    row = {"n": 1, "rows": ["x"], "meta": {"text": "y"}, "body": "z", "raw": b"z"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    kind = re.escape(COLUMNS[key])
    hint = "give --text_key, one of meta.text, body, raw$"
    with pytest.raises(UserError, match=f"column '{key}' of .* holds {kind}, not text: {hint}"):
        read(tmp_path / "a.parquet", text_key=key)


def test_a_table_without_a_column_of_text_says_so(tmp_path):
    with pytest.raises(UserError, match="has no column 'text': none has text"):
        read_bytes(tmp_path, "a.feather", arrow(pyarrow.table({"n": [1]})))


# --------------------------------------------------------------------------------------------------
# Faults in lists and in CSV


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_json_values_are_the_same_whatever_the_size_of_a_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr(corpus.compressed, "CHUNK", size)
    monkeypatch.setattr(corpus.compressed, "HEAD", 64)
    assert read_bytes(tmp_path, "a.json", SPREAD.encode()) == (TEXTS, {})
    assert read_bytes(tmp_path, "b.json", json.dumps(rows_of()).encode()) == (TEXTS, {})
    numbers, notes = read_bytes(tmp_path, "c.json", b'[{"text": "x"}, 12345]')
    assert (numbers, notes) == (["x"], {"int instead of text": f"{tmp_path}/c.json value 2"})


CUT = {
    "inside a value": '[{"text": "x"}, {"text": "y',
    "behind a value": '[{"text": "x"},',
    "no JSON": '[{"text": "x"}, {text: "y"}, {"text": "z"}]',
    "a second text": '[{"text": "x"}] and more',
    "deep": '[{"text": "x"}, ' + '{"a":' * 100_000,
}


@pytest.mark.parametrize("case", CUT)
def test_a_damaged_list_gives_what_is_before_the_fault(tmp_path, case):
    texts, notes = read_bytes(tmp_path, "a.json", CUT[case].encode())
    broken = {"broken JSON: the rest is not read": f"{tmp_path}/a.json:2"}
    assert (texts, notes) == (["x"], broken)


def test_a_value_too_long_to_hold_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.reading, "LONGEST", 1000)
    monkeypatch.setattr(corpus.compressed, "CHUNK", 100)
    content = '[{"text": "x"},\n{"text": "' + "y" * 5000 + '"}]'
    texts, notes = read_bytes(tmp_path, "a.json", content.encode())
    expected = "too long for one line or cell: the rest is not read"
    assert (texts, notes) == (["x"], {expected: f"{tmp_path}/a.json:2"})


def test_a_row_of_csv_with_other_columns_is_named(tmp_path):
    content = b"text,id\none,1\nshe said,\xff hi,2\nlast,3\n\n\xff,4\n,5\n"
    texts, notes = read_bytes(tmp_path, "a.csv", content)
    assert texts == ["one", "last", "\ufffd"]
    row = f"{tmp_path}/a.csv row"
    assert notes == {
        "more or fewer columns than the header": f"{row} 2",
        "invalid UTF-8 replaced": f"{row} 4",
        "empty": f"{row} 5",
    }


def test_a_quotation_mark_that_stays_open_takes_no_rows_along_in_silence(tmp_path):
    """Many tables with tabs do not quote."""
    rows = [f"{number}\tWords of row {number}\n" for number in range(50)]
    rows[9] = '9\t"Words," they said\n'
    rows[3:5] = ['3\t"closed, ""quoted"""\n', '4\tin "the" middle\n']
    texts, notes = read_bytes(tmp_path, "a.tsv", ("id\ttext\n" + "".join(rows)).encode())
    assert texts[3:5] == ['closed, "quoted"', 'in "the" middle']
    assert texts[8:10] == ["Words of row 8", "Words of row 10"]  # one row is lost
    assert notes == {corpus.reading.OPEN_QUOTE: f"{tmp_path}/a.tsv row 10"}
    rows[9] = '9\t"Words they said\n'
    again = read_bytes(tmp_path, "b.tsv", ("id\ttext\n" + "".join(rows)).encode())
    assert again == (texts[:9], {corpus.reading.OPEN_QUOTE: f"{tmp_path}/b.tsv row 10"})


def test_the_names_of_columns_have_no_spaces_around_them(tmp_path):
    assert read_bytes(tmp_path, "a.csv", b"id, text \n1,some words\n") == (["some words"], {})


def test_a_truncated_compressed_csv_gives_what_is_before_the_fault(tmp_path):
    rows = "".join(f"text number {number**9},{number}\n" for number in range(5000))
    packed = gzip.compress(b"text,id\n" + rows.encode())
    texts, notes = read_bytes(tmp_path, "a.csv.gz", packed[: len(packed) // 2])
    assert texts[1000] == f"text number {1000**9}"
    assert "corrupt file" in notes


# --------------------------------------------------------------------------------------------------
# Encodings

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("size", [3, 10_000])
@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("text", [LATIN, JAPANESE])
def test_a_byte_order_mark_names_the_encoding(tmp_path, monkeypatch, text, encoding, size):
    monkeypatch.setattr(corpus.compressed, "CHUNK", size)
    content = MARKS[encoding] + text.encode(encoding)
    assert read_bytes(tmp_path, "a.txt", content) == ([text], {})


# The same text in UTF-16 and UTF-32, by a program that writes no mark.
SCRIPTS = {
    "Latin": LATIN,
    "short": "Hi there",
    "Japanese": JAPANESE,
    "Russian": "Добрый день, мир. Это текст.\n" * 9,
    "Hindi": "यह हिन्दी में है। वह अच्छा है।\n" * 9,
    "Thai": "ภาษาไทยไม่มีช่องว่าง แต่มีวรรค\n" * 9,
    "emoji": "a 🙂 b 😀 text\n" * 500,
}


@pytest.mark.parametrize("encoding", [name for name in MARKS if name != "utf-8"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_text_shows_its_encoding_without_a_mark(tmp_path, script, encoding):
    text = SCRIPTS[script]
    assert read_bytes(tmp_path, "a.txt", text.encode(encoding)) == ([text], {})
    lines = json.dumps({"text": text}, ensure_ascii=False).encode(encoding)
    assert read_bytes(tmp_path, "a.dump", lines) == ([text], {})


@pytest.mark.parametrize("encoding", ["utf-8", "cp1251", "koi8-r"])
def test_one_zero_byte_makes_no_utf_16_of_other_encodings(tmp_path, encoding):
    content = SCRIPTS["Russian"].encode(encoding)
    (note,) = read_bytes(tmp_path, "a.txt", content[:50] + b"\0" + content[50:])[1]
    assert note.startswith("zero bytes" if encoding == "utf-8" else "invalid UTF-8")


ODD = {
    "a zero byte": (b"one\0 " + b"word " * 9, ["one " + "word " * 9], "zero bytes, without which"),
    "lists of names": (b"a.txt\0" * 99, ["a.txt\0" * 99], "binary"),
    "half a character": ("Wörter".encode("utf-16") + b"x", ["Wörter\ufffd"], "invalid UTF-8"),
    "half a pair": ("ab".encode("utf-16") + b"\0\xd8c\0", ["ab\ufffd\ufffd\ufffdc"], "invalid"),
    "mark and Latin-1": (b"\xef\xbb\xbfna\xefve", ["na\ufffdve"], "invalid UTF-8"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_byte_decides_about_itself_alone(tmp_path, case):
    content, expected, word = ODD[case]
    texts, notes = read_bytes(tmp_path, "a.txt", content)
    (note,) = notes
    assert note.startswith(word)
    assert texts == ([] if word == "binary" else expected)


FIELDS = {
    "a.jsonl": b'{"text": "\\ufeffone\\u0000 word"}\n',
    "a.json": b'[{"text": "\\ufeffone\\u0000 word"}]',
    "a zero byte in the line.jsonl": b'{"text": "one\0 word"}\n',
    "a.csv": b'\xef\xbb\xbftext,n\n"\xef\xbb\xbfone\0 word",1\n',
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_neither_mark_nor_zero_byte(tmp_path, name):
    texts, (note,) = read_bytes(tmp_path, name, FIELDS[name])
    assert texts == ["one word"]
    assert note.startswith("zero bytes")
