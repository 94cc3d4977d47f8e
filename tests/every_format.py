"""A file of every kind that people bring, as its name and its bytes."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import zstandard


def written(write, *arguments, **options) -> bytes:
    """Return what write(*arguments, file) writes to a file."""
    file = io.BytesIO()
    write(*arguments, file, **options)
    return file.getvalue()


def arrow(table: pyarrow.Table, new) -> bytes:
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def zipped(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", text)
    return file.getvalue()


def in_tar(text: str, mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        content = text.encode()
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def database(text: str) -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (text)")
    connection.execute("insert into t values (?)", (text,))
    connection.commit()
    return connection.serialize()


def readable(texts: list[str]) -> dict[str, bytes]:
    """Return files whose documents are `texts`, or all texts as one document."""
    rows = [{"text": text, "n": number} for number, text in enumerate(texts)]
    table = pyarrow.table({"text": texts, "n": list(range(len(texts)))})
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    indented = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    csv = written(pyarrow.csv.write_csv, table)
    plain = "".join(texts)
    return {
        "text.txt": plain.encode(),
        "no suffix": plain.encode(),
        "a mark.md": codecs.BOM_UTF8 + plain.encode(),
        "utf-16.txt": plain.encode("utf-16"),
        "utf-32.txt": plain.encode("utf-32"),
        "text.gz": gzip.compress(plain.encode()),
        "text.zst": zstandard.compress(plain.encode()),
        "text.bz2": bz2.compress(plain.encode()),
        "text.xz": lzma.compress(plain.encode()),
        "compressed under another name": gzip.compress(plain.encode()),
        "lines.jsonl": lines,
        "lines.NDJSON": lines,
        "lines.json": lines,
        "lines of Windows.jsonl": lines.replace(b"\n", b"\r\n").decode().encode("utf-16"),
        "lines.jsonl.zst": zstandard.compress(lines),
        "list.json": json.dumps(rows).encode(),
        "list.json.gz": gzip.compress(indented),
        "values.json": b"\n".join(json.dumps(row, indent=2).encode() for row in rows),
        "table.csv": csv,
        "table.tsv": csv.replace(b",", b"\t"),
        "table.csv.zst": zstandard.compress(csv),
        "table.parquet": written(pyarrow.parquet.write_table, table),
        "stream.arrow": arrow(table, pyarrow.ipc.new_stream),
        "file.arrow": arrow(table, pyarrow.ipc.new_file),
        "table without a suffix": arrow(table, pyarrow.ipc.new_file),
    }


def not_readable(text: str) -> dict[str, bytes]:
    """Return files that are no text, or no text of their own."""
    compressed_table = gzip.compress(readable([text])["table.parquet"])
    return {
        "page.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + text.encode(),
        "page.ps": b"%!PS-Adobe-3.0\n" + text.encode(),
        "letter.rtf": b"{\\rtf1\\ansi " + text.encode() + b"}",
        "letter.docx": zipped(text),
        "letter.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
        "a.tar": in_tar(text, "w"),
        "a.tar.xz": in_tar(text, "w:xz"),
        "a.7z": b"7z\xbc\xaf\x27\x1c" + bytes(30),
        "a.rar": b"Rar!\x1a\x07\x01\x00" + bytes(30),
        "a.lz4": b"\x04\x22\x4d\x18" + bytes(30),
        "a.db": database(text),
        "a.npy": written(lambda file: np.save(file, np.arange(9))),
        "a.avro": b"Obj\x01" + bytes(30),
        "crawl.warc.gz": gzip.compress(b"WARC/1.0\r\n" + text.encode()),
        "pointer.parquet": b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
        "table.parquet.gz": compressed_table,
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(range(32)) * 20,
        "program": b"\x7fELF\x02\x01\x01" + bytes(500),
        "empty.txt": b"",
        "empty.json": b"",
        "empty.gz": gzip.compress(b""),
    }
