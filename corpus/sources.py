"""Where text comes from: files, tables, the Hugging Face hub, standard input, prepared answers.

The main process only reads: `read` cuts a source, in order and in constant memory, into blocks, and
the workers turn them into documents (documents.py). The blocks of a unit are always the same, so a
preparation that was killed resumes behind the last block that it finished.
"""

import gzip
import hashlib
import shutil
import sys
import sysconfig
import urllib.request
from bisect import bisect_right
from collections import namedtuple
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path

import numpy as np

from corpus import claude
from corpus.compressed import read_chunks
from nanoloop.data import FORMATS
from nanoloop.files import replace_file, sha256_of_file
from nanoloop.options import UserError, reading, require

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# nanoGPT's options for this text: its characters are bytes, and the last tenth is validation.
SHAKESPEARE_OPTIONS = {
    "name": "shakespeare_char",
    "tokenizer": "byte",
    "val_fraction": 0.1,
    "test_fraction": 0,
}
# Folders with Python source that is no library: tests, and copies of other projects.
NOT_LIBRARY = set(
    "test tests idle_test site-packages dist-packages _vendor _vendored __pycache__".split()
)
TABLES = ("parquet", "arrow")

BATCH_BYTES = 1_000_000  # of a source, for one worker at a time
BLOCK = 1_000_000  # bytes of lines that are read at a time
PIECE = 4_000_000  # bytes: a longer text becomes several documents and is never held in memory
LONGEST = 16_000_000  # bytes of a JSON line or a cell, which is held in memory
TOO_LONG = "too long for one line or cell"


@dataclass
class Unit:
    """Something to read from its beginning to its end.

    kind: text, jsonl, parquet, arrow, hf, synthetic, claude or tokens. source: its name in the
    report. size: bytes on disk. cuts: where a single text is split by position, in bytes: the end
    of train and the end of test. answers: the path of the answers file, for the kind claude.
    """

    kind: str
    path: str
    source: str
    size: int = 0
    cuts: tuple = ()
    answers: Path | None = None


@dataclass(slots=True)
class Block:
    """A part of a unit.

    payload: a piece of a text, whole lines of JSON, a table's cells with a note for each, the
    indices of synthetic documents, or one of Claude's answers. number: of its first line or row,
    from 1. used: bytes of the file so far. note: what is wrong. split: where the position in a text
    decides it.
    """

    payload: bytes | list | range
    number: int = 0
    used: int = 0
    note: str | None = None
    split: str | None = None


# How far a preparation is: units that are done, blocks of the next one, bytes in all.
Cursor = namedtuple("Cursor", "unit blocks n_bytes")


@dataclass(slots=True)
class Batch:
    """Blocks for one worker, pairs of (Unit, Block).

    cursor: behind the blocks. used: bytes of the last file so far. bytes_before: before the blocks.
    """

    cursor: Cursor
    used: int
    bytes_before: int
    blocks: list


# --------------------------------------------------------------------------------------------------
# From --source to units. The order of the files never depends on the file system.


def find_units(config, data_root: Path, name: str) -> list[Unit]:
    """Return what --source asks for, in the order of reading. Raises UserError.

    config: a PrepareConfig. name: of the prepared folder.
    """
    units = {}  # by path: a file that is named twice is read once
    for source in config.source:
        kind, _, rest = source.partition(":")
        ready = token_files(source)
        if kind in ("hf", "synthetic", "claude") and rest:
            answers = data_root / f"{name}.claude.jsonl"
            units[source] = Unit(kind, rest, source, answers=answers)
            continue
        if ready:
            files = dict.fromkeys(ready, source)
        elif source == "python":
            files = python_files(config.include_site_packages)
        elif source == "shakespeare":
            files = {download_shakespeare(data_root): source}
        elif source == "-":
            files = {save_standard_input(data_root, config.name or "stdin"): source}
        else:
            files = text_files(source)
        for file, label in files.items():
            kind = "tokens" if ready else kind_of(file, config.text_key)
            size = file.stat().st_size if file.exists() else 0  # a link can point nowhere
            units.setdefault(str(file), Unit(kind, str(file), label, size))
    return list(units.values())


def kind_of(file, text_key):
    suffix = Path(file.name.removesuffix(".gz").removesuffix(".zst")).suffix[1:]
    if suffix in ("json", "stdin") and text_key:
        return "jsonl"
    return suffix if suffix in ("jsonl", *TABLES) else "text"


def python_files(include_site_packages):
    """Return the files of the standard library, each with the name of its package.

    include_site_packages: those of the installed packages too.
    """
    names = ["stdlib"]
    if include_site_packages:
        names += ["purelib", "platlib"]
    files = {}
    for name in names:
        root = Path(sysconfig.get_path(name)).resolve()
        for file in sorted(root.rglob("*.py")):
            *folders, _ = file.relative_to(root).parts
            if not NOT_LIBRARY & set(folders):
                files[file] = [*folders, root.name][0]
    return files


def text_files(source):
    """Return the files of a path, a folder or a glob, each with its topmost folder.

    Hidden files are left out. Tables stand alone: the other files beside them describe them.
    """
    files = {}
    for path in sorted(map(Path, glob(source, recursive=True))) or [Path(source)]:
        hint = "give python, shakespeare, hf:NAME, synthetic:TASKS, - or paths (quote a glob)"
        require(path.exists(), f"--source={source} does not exist: {hint}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(path).parts
            is_hidden = any(part.startswith(".") for part in parts)
            if not is_hidden and (file.is_file() or file.is_symlink()):
                files[file] = parts[0] if len(parts) > 1 else source
    require(files, f"--source={source} is a folder without files")
    tables = {file: label for file, label in files.items() if file.suffix[1:] in TABLES}
    return tables or files


def token_files(source):
    """Return files of ready tokens: llm.c's shards, and nanoGPT's train.bin and val.bin."""
    files = []
    for path in map(Path, sorted(glob(source, recursive=True))):
        files += sorted(path.glob("*.bin")) if path.is_dir() else [path]
    return [
        file
        for file in files
        if file.suffix == ".bin" and (file.stem in ("train", "val") or has_magic(file))
    ]


def has_magic(path):
    """Say whether a file begins as llm.c's shards do."""
    return np.fromfile(path, dtype="<i4", count=1).tolist() in [[magic] for magic, _ in FORMATS]


def download_shakespeare(data_root):
    """Return the path of tiny Shakespeare, downloaded once. Raises UserError."""
    path = data_root / "tinyshakespeare.txt"
    if path.is_file() and sha256_of_file(path) == SHAKESPEARE_SHA256:
        return path
    print(f"downloading {SHAKESPEARE_URL}")
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            content = response.read()
    except OSError as error:
        flags = " ".join(f"--{key}={value}" for key, value in SHAKESPEARE_OPTIONS.items())
        raise UserError(
            f"{SHAKESPEARE_URL} could not be downloaded ({error}). With a copy of nanoGPT's "
            f"input.txt, type:\n  python prepare_data.py --source=PATH/input.txt {flags}"
        ) from None
    is_same = hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256
    require(is_same, f"{SHAKESPEARE_URL} changed: its SHA-256 is not {SHAKESPEARE_SHA256}")
    data_root.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))
    return path


def save_standard_input(data_root, stem):
    """Copy standard input to a file: it is read twice if a tokenizer is trained on it.

    Each text has its own file name, so that another text is not taken for the first one.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    for old in data_root.glob(f"{stem}.*.stdin"):  # of a process that was killed
        old.unlink()
    path = data_root / f"{stem}.stdin"
    replace_file(path, lambda file: shutil.copyfileobj(sys.stdin.buffer, file, 2**20))
    return path.rename(path.with_suffix(f".{sha256_of_file(path)[:16]}.stdin"))


# --------------------------------------------------------------------------------------------------
# Reading, in the main process


def read_batches(units: list[Unit], config, cursor: Cursor):
    """Yield the blocks behind `cursor`, about BATCH_BYTES at a time.

    A unit that is half done is read again from its beginning: reading is cheap.
    """
    blocks = []
    start = cursor.n_bytes
    position = start
    skip = cursor.blocks
    for index in range(cursor.unit, len(units)):
        for number, block in enumerate(islice(read(units[index], config), skip, None), skip + 1):
            blocks.append((units[index], block))
            is_raw = isinstance(block.payload, bytes)
            position += len(block.payload) if is_raw else BATCH_BYTES // 8
            if position - start >= BATCH_BYTES or len(blocks) == 1000:
                yield Batch(Cursor(index, number, position), block.used, start, blocks)
                blocks = []
                start = position
        skip = 0
    yield Batch(Cursor(len(units), 0, position), 0, start, blocks)


def read(unit: Unit, config):
    """Yield a unit as blocks of a few megabytes.

    A fault ends the unit: after what is good comes a block with a note.
    """
    note = "empty"
    try:
        for block in open_unit(unit, config):
            note = None
            yield block
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:  # zlib, zstandard and pyarrow have errors of their own
        is_system = isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile)
        note = "unreadable" if is_system else "corrupt file"
    if note:
        yield Block(b"", note=note)


def open_unit(unit, config):
    """Return an iterator of the blocks of a unit."""
    path = Path(unit.path)
    if unit.kind == "text":
        return cut_pieces(read_chunks(path), unit.cuts)
    if unit.kind == "jsonl":
        return cut_lines(read_chunks(path))
    if unit.kind == "synthetic":
        indices = range(config.max_documents or 10_000)
        return (Block(indices[first : first + 1000]) for first in indices[::1000])
    if unit.kind == "claude":
        return (Block([answer]) for answer in claude.ask_all(path, config, unit.answers))
    if unit.kind == "hf":
        return read_hub(unit, config)
    return read_table(unit, config)


def read_hub(unit, config):
    hint = (
        "With a network, check the name, --hf_config and --hf_split, and run the same command "
        "again. Without one, copy the files from elsewhere (hf download NAME --repo-type=dataset "
        "--local-dir=FOLDER) and type --source=FOLDER; or take --source=python, or your own text"
    )
    with reading(f"--source={unit.source} could not be read", hint):
        yield from read_table(unit, config)


def read_table(unit, config):
    """Yield a column of a table, 64 rows at a time."""
    key = config.text_key or "text"
    names, tables = open_table(unit, config, key)
    hint = f"give --text_key, one of {', '.join(names)}"
    require(key in names, f"{unit.path} has no column {key!r}: {hint}")
    number = 1
    for table in tables:
        for start in range(0, len(table), 64):
            cells = []
            # As bytes: nobody has checked the UTF-8.
            for value in table[key].slice(start, 64).cast("large_binary").to_pylist():
                is_long = value and len(value) > LONGEST
                cells.append((None, TOO_LONG) if is_long else (value, None))
            yield Block(cells, number)
            number += len(cells)


def open_table(unit, config, key):
    """Return the names of the columns and an iterator of pyarrow tables."""
    import pyarrow
    import pyarrow.parquet

    if unit.kind == "parquet":
        file = pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False, buffer_size=2**20)
        return file.schema_arrow.names, file.iter_batches(64, columns=[key])
    if unit.kind == "arrow":
        file = pyarrow.ipc.open_stream(pyarrow.OSFile(unit.path))
        return file.schema.names, file
    # Version 4 and later run no code of a data set.
    from datasets import load_dataset

    data = load_dataset(unit.path, config.hf_config, split=config.hf_split, streaming=True)
    names = data.column_names or list(next(iter(data)))
    return names, data.with_format("arrow").iter(batch_size=64)


def cut_pieces(chunks, cuts):
    """Cut a text into pieces of at most PIECE bytes, and at the `cuts`.

    A piece ends behind a line where there are lines, and never inside a character.
    """
    pending = bytearray()
    offset = 0  # of pending in the text
    for chunk, used in chunks:
        pending += chunk
        is_last = not chunk
        while len(pending) > PIECE + 3 or (is_last and pending):
            limit = min([PIECE, *(cut - offset for cut in cuts if cut > offset)])
            size = limit
            if limit == PIECE < len(pending):
                size = pending.rfind(b"\n", 0, limit) + 1 or limit
            size += bytes_to_boundary(pending[size : size + 4])
            split = ("train", "test", "val")[bisect_right(cuts, offset)] if cuts else None
            yield Block(bytes(pending[:size]), 0, used, split=split)
            offset += size
            del pending[:size]


def bytes_to_boundary(data):
    """Return how many bytes at the beginning belong to a character that began before."""
    for index, byte in enumerate(data):
        if byte & 0xC0 != 0x80:
            return index
    return 0 if len(data) == 4 else len(data)


def cut_lines(chunks):
    """Cut a file into blocks of whole lines, about BLOCK bytes each.

    A line much longer than LONGEST becomes a block with a note.
    """
    pending = bytearray()
    number = 1  # of the first line in pending
    is_skipping = False  # inside a line that is too long
    for chunk, used in chunks:
        is_last = not chunk
        if is_skipping:
            _, newline, chunk = chunk.partition(b"\n")
            if not newline and not is_last:
                continue
            yield Block(b"", number, used, TOO_LONG)
            number += 1
            is_skipping = False
        pending += chunk
        size = len(pending) if is_last else pending.rfind(b"\n") + 1
        if size and (is_last or len(pending) >= BLOCK):
            yield Block(bytes(pending[:size]), number, used)
            number += pending.count(b"\n", 0, size)
            del pending[:size]
        if len(pending) > LONGEST:
            pending.clear()
            is_skipping = True
