"""What a file holds: its first bytes decide, and its name where they cannot."""

import codecs
import json
import re
from pathlib import Path

from corpus.compressed import read_head
from nanoloop.options import require

PACKED = re.compile(r"\.(gz|zst|zstd|bz2|xz)$", re.IGNORECASE)
NAMES = {
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
# Kinds whose documents are fields or columns, which --text_key names.
KEYED = ("jsonl", "json", "csv", "parquet", "arrow", "hf")
TABLE_STARTS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
# What is no text: its first bytes, its name, and what makes text of it.
NO_TEXT = {
    b"%PDF-": "PDF: make text of it with pdftotext",
    b"%!PS": "PostScript: make text of it with ps2ascii",
    b"{\\rtf": "RTF: make text of it with pandoc",
    b"PK\x03\x04": "zip (.docx, .xlsx, .epub and .npz too): open it with unzip, or pandoc",
    b"\xd0\xcf\x11\xe0": "an old document of Office: make text of it with libreoffice --convert-to",
    b"Rar!\x1a": "rar: open it with unrar",
    b"7z\xbc\xaf": "7z: open it with 7z x",
    b"\x04\x22\x4d\x18": "lz4: open it with unlz4",
    b"SQLite format 3\0": "SQLite: write its text to CSV with sqlite3 -csv",
    b"\x93NUMPY": "an array of NumPy: write its text with Python",
    b"\x89HDF": "HDF5: write its text with h5dump",
    b"Obj\x01": "Avro: write its text with avro cat",
    b"WARC/": "web pages in WARC: make text of them with trafilatura or resiliparse",
    b"version https://git-lfs": "only a link of Git LFS: type git lfs pull",
}
TAR = "tar: open it with tar -xf"
PACKED_TABLE = "a table in a compressed file: unpack it first, with gunzip or zstd -d"
CONTROL = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))  # bytes that text has rarely
HTML = "HTML, read with its tags (trafilatura or resiliparse make text of it)"
HTML_START = re.compile(r"\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", re.IGNORECASE)
# JSON that has no value a line: a list, or an object whose second line begins no other one.
SPREAD = re.compile(r"\[|\{[^\n]*\n\s*[^{\s]")
SEPARATORS = re.compile(r"[\s,\[\]]*")  # between the values of a JSON text, and its list's brackets


def format_of(path: Path, text_key: str | None) -> tuple[str, str | None]:
    """Return the kind of a file (see Unit), and why it is not read, or None."""
    head = read_head(path)
    for beginning, note in NO_TEXT.items():
        if head.startswith(beginning):
            return "text", note
    if head[257:262] == b"ustar":
        return "text", TAR
    for beginning, kind in TABLE_STARTS.items():
        if head.startswith(beginning):
            with open(path, "rb") as file:
                is_packed = not file.read(6).startswith(beginning)
            return kind, PACKED_TABLE if is_packed else None
    kind = NAMES.get(suffix_of(path))
    if kind in TABLE_STARTS.values() or kind == "csv":
        return kind, None
    text = head.decode(errors="replace").lstrip()
    if kind == "jsonl" or is_json(text, text_key):
        return "json" if SPREAD.match(text) else "jsonl", None
    _, names = read_header(text)
    return "csv" if len(names) > 1 and text_key in names else "text", None


def suffix_of(path):
    """Return the last suffix in lower case, not counting that of a compression."""
    return Path(PACKED.sub("", str(path))).suffix.lower()


def is_html(path, text):
    return suffix_of(path) in (".html", ".htm", ".xhtml") or HTML_START.match(text) is not None


# --------------------------------------------------------------------------------------------------
# Text


def decode_text(content):
    """Return (text, note) of a piece of a file. Many control characters make it binary."""
    if b"\0" in content:
        n_control = len(content) - len(content.translate(None, CONTROL))
        if n_control * 20 > len(content):
            return "", "binary"
    return decode(content)


def decode(value):
    """Return (text, note) of a value that should be a text, str or UTF-8.

    A byte order mark and zero bytes are left out.
    """
    if not isinstance(value, str | bytes):
        return "", "no text" if value is None else f"{type(value).__name__} instead of text"
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")  # JSON can spell half a character: \\ud800
    note = "zero bytes, without which the text is read" if b"\0" in value else None
    value = value.removeprefix(codecs.BOM_UTF8).replace(b"\0", b"")
    try:
        return value.decode(), note if value else "empty"
    except UnicodeDecodeError:
        return value.decode(errors="replace"), "invalid UTF-8 replaced"


# --------------------------------------------------------------------------------------------------
# JSON


def is_json(text, text_key):
    """Say whether a text holds JSON objects with documents.

    Source code and prose can begin with a bracket. So the first value must be a complete object,
    nothing but JSON may follow it, and without `text_key` it must have the field "text".
    """
    if not text.startswith(("{", "[")):
        return False
    try:
        value, end = json.JSONDecoder().raw_decode(text, SEPARATORS.match(text).end())
    except (ValueError, RecursionError):
        return False
    follows = text[end:].lstrip("] \t\r\n")[:1]
    is_object = isinstance(value, dict) and follows in ("", ",", "{")
    return is_object and (text_key is not None or "text" in value)


def find_field(row, key):
    """Return the value of a field. Raises LookupError or TypeError if there is none.

    "a.b" is field b of field a, unless a field has this name.
    """
    name, dot, rest = key.partition(".")
    if key in row or not dot:
        return row[key]
    return find_field(row[name], rest)


def field_names(row):
    """Return the names of the fields of a row of JSON; "a.b" is field b of field a."""
    names = []
    for name, value in row.items():
        inner = value if isinstance(value, dict) else []
        names += [f"{name}.{key}" for key in inner] or [name]
    return names


# --------------------------------------------------------------------------------------------------
# Tables


def read_header(text):
    """Return (delimiter, names of the columns) of the first line of a table in text."""
    line, _, _ = text.lstrip().partition("\n")
    delimiter = max(",\t;|", key=line.count)
    return delimiter, [name.strip().strip('"') for name in line.split(delimiter)]


def text_column(table, key, path):
    """Return a column of a pyarrow table; "a.b" is field b of the struct a.

    A column whose name contains the dot comes first. Raises UserError if it holds no text.
    """
    import pyarrow

    flat = table
    while any(map(pyarrow.types.is_struct, flat.schema.types)):
        flat = flat.flatten()
    usable = [field.name for field in flat.schema if is_text(field.type)]
    hint = f"give --text_key, one of {', '.join(usable[:20])}" if usable else "none has text"
    found = table if key in table.column_names else flat
    require(key in found.column_names, f"{path} has no column {key!r}: {hint}")
    kind = found[key].type
    require(is_text(kind), f"column {key!r} of {path} holds {kind}, not text: {hint}")
    return found[key]


def is_text(kind):
    """Say whether a column of this pyarrow type can hold text."""
    import pyarrow

    try:
        pyarrow.nulls(0, kind).cast("large_binary")
    except pyarrow.ArrowNotImplementedError:
        return False
    return True
