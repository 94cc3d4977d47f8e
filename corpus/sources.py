"""Where text comes from: files, tables, the Hugging Face hub, standard input; and what is in them.

The main process only reads: `read` cuts a source, in order and in constant memory, into `Raw` blocks. The workers make
documents of them: `documents` decodes, parses JSON, and names what is wrong. A block knows where reading goes on behind
it, so that a preparation that was killed starts again in the middle of a file.
"""

import hashlib
import json
import re
import shutil
import sys
import sysconfig
import urllib.request
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from console import UserError, explained, first_line, replace_file, require, sha256_of_file
from corpus import synthetic

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# nanoGPT's rules for this text: characters (on ASCII text bytes are characters), the last tenth is validation.
SHAKESPEARE_OPTIONS = {"name": "shakespeare_char", "tokenizer": "byte", "val_fraction": 0.1, "test_fraction": 0.0}
# Folders of Python source that are not what the interpreter's authors wrote for use: tests, copies of other projects.
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_vendor", "_vendored", "__pycache__"}

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}  # all other files are text
BLOCK = 1_000_000  # bytes of lines or rows that are read at a time
PIECE = 4_000_000  # bytes of a text that are read at a time: a longer document is encoded in pieces
LONGEST = 16_000_000  # bytes of a JSON line or a table's cell, which have to be held whole: a longer one is left out
TOO_LONG = f"over {LONGEST // 10**6} MB in one line or cell"
WORD_END = re.compile(rb".*[A-Za-z0-9](?=[ \n])", re.DOTALL)  # the last one, for .* takes all it can


class Unit(NamedTuple):
    """One thing to read from its beginning to its end: a file, or a stream of rows."""

    kind: str  # text, nanogpt, jsonl, parquet, arrow, hf, synthetic
    path: str
    source: str  # under which name the report counts it: a package, a folder, a data set
    size: int = 0  # bytes on disk, for the progress bar


class Raw(NamedTuple):
    """A part of a unit as the main process has read it."""

    unit: Unit
    payload: bytes | list  # a piece of a text, whole lines of JSON, or the values of rows
    number: int  # of its first line or row, from 0
    after: tuple[int, int] | None  # where to go on: (bytes or rows so far, the state of `read_bytes`); None: at the end
    used: int = 0  # bytes of the file so far, for the progress bar
    note: str | None = None
    split: str | None = None
    continued: bool = False  # a further piece of the document before it


class Document(NamedTuple):
    text: str
    note: str | None  # what was wrong with it: "empty", "broken JSON", "invalid UTF-8 replaced" …
    where: str  # for people: the file, with the line or row in it


# ---------------------------------------------------------------------------------------------------------------------
# From --source to units. The order of the files never depends on the file system.


def python_files(include_site_packages: bool) -> dict[Path, str]:
    """The running interpreter's standard library, and with include_site_packages what is installed beside it; each file
    with the name of its package."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"]] + ([paths["purelib"], paths["platlib"]] if include_site_packages else [])
    files: dict[Path, str] = {}
    for root in dict.fromkeys(Path(path).resolve() for path in roots):  # purelib and platlib are often one folder
        found = sorted(file for file in root.rglob("*.py") if not NOT_LIBRARY & set(file.relative_to(root).parts[:-1]))
        files |= {file: label(file, root) for file in found}
    return files


def label(file: Path, root: Path) -> str:
    """A file's topmost folder below `root`."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.name


def text_files(source: str) -> dict[Path, str]:
    """A file, a folder (everything below it but hidden files) or a glob: files in a fixed order, each with its label.
    Of a folder that holds tables only the tables are taken: beside them lie descriptions."""
    files: dict[Path, str] = {}
    for path in sorted(map(Path, glob(source, recursive=True))) or [Path(source)]:
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.is_file() or f.is_symlink() and not f.is_dir())
            inside = [f for f in inside if not any(p.startswith(".") for p in f.relative_to(path).parts)]
            tables = [f for f in inside if f.suffix in (".parquet", ".arrow")]
            if len(tables) not in (0, len(inside)):
                print(f"{path} holds tables: the {len(inside) - len(tables):,} other files in it are left aside")
            files |= {file: label(file, path) for file in tables or inside}
        else:
            told = f"--source={source}: no such file or folder, and nothing matches it as a glob. Give python, shakespeare"
            require(path.is_file(), f"{told}, hf:NAME, synthetic:TASKS, - or paths: files, folders, globs in quotes")
            files[path] = source
    require(files, f"--source={source}: the folder holds no files")
    return files


def token_files(sources: tuple[str, ...]) -> list[Path]:
    """The sources' files of ready tokens: llm.c's shards, by their first bytes, and nanoGPT's train.bin and val.bin."""
    paths = [Path(path) for source in sources for path in sorted(glob(source, recursive=True))]
    files = [f for path in paths for f in (sorted(path.glob("*.bin")) if path.is_dir() else [path]) if f.suffix == ".bin"]
    return [f for f in files if f.stem in ("train", "val") or np.fromfile(f, "<i4", 1).tolist() in ([20240520], [20240801])]


def find_units(config, data_root: Path) -> list[Unit]:
    """What the options `config` (a PrepareConfig) ask for, in the order of reading. Raises UserError."""
    units: dict[str, Unit] = {}  # by path: a file named twice is read once
    for source in config.source:
        kind, _, rest = source.partition(":")
        files: dict[Path, str] = {}
        if kind in ("hf", "synthetic", "claude") and rest:
            units[source] = Unit(kind, rest, source)
        elif source == "python":
            files = python_files(config.include_site_packages)
        elif source == "shakespeare":
            files = {shakespeare_file(data_root): source}
        elif source == "-":
            files = {copy_of_standard_input(data_root): "standard input"}
        else:
            ready = token_files((source,))
            files = dict.fromkeys(ready, source) or text_files(source)
            units |= {str(file): Unit("nanogpt", str(file), source, file.stat().st_size) for file in ready}
        for file, source in files.items():
            suffix = Path(file.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
            lines = suffix in (".json", ".stdin") and config.text_key
            kind = "jsonl" if lines else KINDS.get(suffix, "text")
            units.setdefault(str(file), Unit(kind, str(file), source, file.stat().st_size if file.exists() else 0))
    return list(units.values())


def copy_of_standard_input(data_root: Path) -> Path:
    """Standard input as a file: a tokenizer is trained before the text is encoded, so it is read twice."""
    data_root.mkdir(parents=True, exist_ok=True)
    path = data_root / "standard_input"
    replace_file(path, lambda file: shutil.copyfileobj(sys.stdin.buffer, file, 2**20))
    return path.rename(data_root / f"{sha256_of_file(path)[:16]}.stdin")  # another text is another source


def shakespeare_file(data_root: Path) -> Path:
    """Tiny Shakespeare, downloaded once to data/tinyshakespeare.txt and checked."""
    path = data_root / "tinyshakespeare.txt"
    if not path.is_file() or sha256_of_file(path) != SHAKESPEARE_SHA256:
        print(f"downloading {SHAKESPEARE_URL}")
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
                content = response.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            options = " ".join(f"--{key}={value}" for key, value in SHAKESPEARE_OPTIONS.items())
            raise UserError(
                f"tiny Shakespeare could not be downloaded ({error}). With a local copy of nanoGPT's input.txt, type:\n"
                f"  python prepare_data.py --source=PATH/input.txt {options.replace('=0.0', '=0')}"
            ) from None
        same = hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256
        require(same, f"{SHAKESPEARE_URL} did not give nanoGPT's text: its SHA-256 is not {SHAKESPEARE_SHA256}")
        data_root.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Reading, in the main process.


def read(unit: Unit, config, after: tuple[int, int], cuts: tuple[int, ...] = ()) -> Iterator[Raw]:
    """A unit from the place `after` on, in memory for a few pieces. What cannot be read becomes a note; reading goes on
    with the next unit. cuts: where one single text is split by position, in bytes: the ends of train and of test."""
    try:
        yield from (read_bytes(unit, *after, cuts) if unit.kind in ("text", "nanogpt", "jsonl") else
                    read_rows(unit, config, after[0]))  # fmt: skip
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:  # of many kinds: a damaged table
        yield Raw(unit, b"", 0, None, unit.size, f"unreadable: {first_line(error)}")


def read_chunks(unit: Unit, offset: int) -> Iterator[tuple[bytes, int, str | None]]:
    """Yields (bytes of text from byte `offset` on, bytes of the file used so far, None), and at the end (nothing, bytes
    used, what was wrong or ""). A file that its first bytes show to be compressed is unpacked, each time from its
    beginning; what was unpacked before a fault is not lost."""
    fault, skip, used = "", offset, 0
    try:
        with open(unit.path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"\x1f\x8b":
                chunks = unpack(file, partial(zlib.decompressobj, wbits=31), 4096)
            elif magic == b"\x28\xb5\x2f\xfd":
                import zstandard

                chunks = unpack(file, zstandard.ZstdDecompressor().decompressobj, 512)
            elif unit.kind == "nanogpt":
                chunks = map(nanogpt_text(Path(unit.path)), iter(partial(file.read, 2**20), b""))
            else:
                skip = offset - file.seek(offset)
                chunks = iter(partial(file.read, 2**20), b"")
            for chunk in chunks:
                used = file.tell()
                if len(chunk) > skip:
                    yield chunk[skip:], used, None
                skip = max(0, skip - len(chunk))
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:  # zlib's and zstandard's own
        fault = "unreadable" if isinstance(error, OSError) else "corrupt compressed file"
    yield b"", used, fault


def unpack(file, make, step: int) -> Iterator[bytes]:
    """Read `step` bytes at a time, few, for they may stand for a thousand times as many. make: a new decompressor, as
    zlib's and zstandard's decompressobj."""
    inflater = make()
    while packed := file.read(step):
        while packed:
            if inflater.eof:  # compressed files joined one behind the other are one text
                inflater = make()
            yield inflater.decompress(packed)
            packed = inflater.unused_data
    if not inflater.eof:
        raise EOFError


def nanogpt_text(path: Path):
    """A function from nanoGPT's two-byte token ids to UTF-8. For a text by characters nanoGPT keeps the vocabulary in
    meta.pkl, and a pickle can run code; but the vocabulary is the sorted characters of the input.txt beside it."""
    text = path.with_name("input.txt")
    told = f"{path} holds numbers of characters; which ones is in meta.pkl, a pickle, which can run code and is not read"
    require(text.is_file(), f"{told}. Put nanoGPT's input.txt beside it: its sorted characters are the vocabulary")
    with open(text, encoding="utf-8") as lines:
        characters = np.array(sorted(set().union(*lines)))

    def decode(ids: bytes) -> bytes:
        numbers = np.frombuffer(ids, dtype="<u2")
        told = f"{path} holds token {numbers.max()}, but {text} has {len(characters)} characters: it is another text"
        require(numbers.max() < len(characters), told)
        return characters[numbers].tobytes().decode("utf-32").encode("utf-8")

    return decode


def read_bytes(unit: Unit, offset: int, number: int, cuts: tuple[int, ...]) -> Iterator[Raw]:
    """A text in pieces of at most PIECE bytes, JSON in whole lines. Where a piece ends follows from `offset` and the text
    alone, so that going on after a kill cuts as reading through does.

    number: of lines so far; in a text, 1 where byte `offset` goes on with a document.
    """
    held, lines, long = bytearray(), unit.kind == "jsonl", False
    for chunk, used, fault in read_chunks(unit, offset):
        held += chunk
        while True:
            long = long or lines and len(held) > LONGEST and held.find(b"\n", 0, LONGEST) < 0
            end = fault is not None
            cut = end_of_lines(held, long, end) if lines else end_of_piece(held, offset, cuts, end)
            if not cut:
                break
            payload, first, part = bytes(held[:cut]), number, bisect_right(cuts, offset)
            del held[:cut]
            offset += cut
            number = number + payload.count(b"\n") if lines else int(part == bisect_right(cuts, offset))
            if not long:
                split = ("train", "test", "val")[part] if cuts else Path(unit.path).stem if unit.kind == "nanogpt" else None
                yield Raw(unit, payload, first, (offset, number), used, None, split, first > 0 and not lines)
            elif number > first:  # its end was found: on with the next line
                yield Raw(unit, b"", first, (offset, number), used, TOO_LONG)
                long = False
    if note := " and ".join(filter(None, [long and TOO_LONG, fault])) or (not offset and "empty"):
        yield Raw(unit, b"", number, None, used, note)


def end_of_lines(held: bytearray, long: bool, end: bool) -> int:
    """How many of the bytes at hand to take: whole lines; 0 where more bytes are needed first. end: there are no more.
    long: the first line is passed over."""
    if long or len(held) < BLOCK:
        return held.find(b"\n") + 1 or len(held) if long else len(held) * end
    return held.rfind(b"\n", 0, BLOCK) + 1 or held.find(b"\n", BLOCK, LONGEST) + 1 or len(held) * end


def end_of_piece(held: bytearray, offset: int, cuts: tuple[int, ...], end: bool) -> int:
    """The same for text: up to one of the `cuts`, but not inside a character; else behind a word that white space
    follows, for tiktoken's patterns cut there too, and the tokens stay those of the whole."""
    room = min([PIECE] + [cut - offset for cut in cuts if cut > offset])
    if len(held) <= room + 3 and not end or len(held) <= room:
        return len(held) * end
    found = WORD_END.match(held, max(0, room - 65536), room + 1) if room == PIECE else None
    inside = next((i for i in range(4) if held[room + i : room + i + 1] < b"\x80" or held[room + i] >= 0xC0), 0)
    return found.end() if found else room + inside


def read_rows(unit: Unit, config, number: int) -> Iterator[Raw]:
    """Values of rows, about BLOCK bytes at a time. Synthetic text is made by the workers, from the rows' numbers."""
    if unit.kind == "synthetic":
        count = config.max_documents or 10_000
        yield from (Raw(unit, [], i, (min(i + 1000, count), 0)) for i in range(number, count, 1000))
        return
    if unit.kind == "claude":
        from corpus import claude  # which imports Document from here

        answers = islice(claude.documents(Path(unit.path), config, config.answers), number, None)
        yield from (Raw(unit, [answer], i, (i + 1, 0)) for i, answer in enumerate(answers, number))
        return
    values, size, done = [], 0, 0  # done: rows of the file so far
    for rows in tables(unit, config):
        column = rows[config.text_key or "text"]
        strings = column.cast("large_binary") if "string" in str(column.type) else column  # no trust in their UTF-8
        for value in strings[max(0, number - done) :].to_pylist():
            values.append(TOO_LONG if isinstance(value, bytes) and len(value) > LONGEST else value)
            size += len(values[-1]) if isinstance(value, bytes) else 1
        done += len(strings)
        if size >= BLOCK:
            yield Raw(unit, values, number, (done, 0), 0)
            values, size, number = [], 0, done
    if values:
        yield Raw(unit, values, number, (done, 0), unit.size)


def tables(unit: Unit, config) -> Iterator:
    """pyarrow tables of a few rows each: Parquet by pages, what save_to_disk has written, or streamed from the hub by
    `datasets`, whose version 4 and later run no code of a data set."""
    import pyarrow
    import pyarrow.parquet

    if unit.kind == "parquet":
        with pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False, buffer_size=2**20) as file:
            check_column(config, file.schema_arrow.names, unit)
            yield from file.iter_batches(64, columns=[config.text_key or "text"])
        return
    if unit.kind == "arrow":
        with pyarrow.OSFile(unit.path) as file, pyarrow.ipc.open_stream(file) as batches:
            check_column(config, batches.schema.names, unit)
            yield from batches
        return
    from datasets import load_dataset

    remedy = (
        "With a network, look at the name, --hf_config and --hf_split, and run the same command again. Without one, bring "
        f"its files from elsewhere (hf download {unit.path} --repo-type=dataset --local-dir=FOLDER) and type "
        "--source=FOLDER; or take --source=python, or text of your own"
    )
    with explained(f"--source={unit.source} could not be read", remedy):
        data = load_dataset(unit.path, config.hf_config, split=config.hf_split, streaming=True)
        for rows in data.with_format("arrow").iter(batch_size=64):
            check_column(config, rows.column_names, unit)
            yield rows


def check_column(config, names: list[str], unit: Unit) -> None:
    key = config.text_key or "text"
    require(key in names, f"{unit.path} has no column {key!r}: give --text_key, one of {', '.join(names)}")


# ---------------------------------------------------------------------------------------------------------------------
# Understanding, in the workers.


def documents(raw: Raw, config) -> Iterator[tuple[Document, str | None]]:
    """(document, its split where the source decides it) for all that was read; each fault is named in a note."""
    unit = raw.unit
    if unit.kind == "synthetic":
        for index, split, text in synthetic.documents(unit.path, config.seed, raw.after[0], raw.number):
            yield Document(text, None, f"{unit.source} {index}"), split
    elif raw.note:
        yield Document("", raw.note, f"{unit.path}:{raw.number + 1}" if unit.kind == "jsonl" else unit.path), None
    elif unit.kind == "jsonl":
        for number, line in enumerate(raw.payload.split(b"\n"), raw.number + 1):
            if line.strip():
                yield Document(*parse(line, config.text_key or "text"), f"{unit.path}:{number}"), None
    elif isinstance(raw.payload, bytes):
        text, note = ("", "binary") if b"\0" in raw.payload else clean(raw.payload)
        yield Document(text, note, unit.path), raw.split
    else:
        for number, value in enumerate(raw.payload, raw.number + 1):
            if isinstance(value, Document):
                yield value, None
                continue
            text, note = ("", TOO_LONG) if value is TOO_LONG or value == TOO_LONG else clean(value)
            yield Document(text, note, f"{unit.path} row {number}"), None


def parse(line: bytes, key: str) -> tuple[str, str | None]:
    """(text, note) of a line of JSON."""
    content, note = clean(line)
    try:
        row = json.loads(content.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return "", "broken JSON"
    text, found = clean(row.get(key) if isinstance(row, dict) else None)
    return text, found or note


def clean(value) -> tuple[str, str | None]:
    """(text, note) of what should be a text."""
    if not isinstance(value, str | bytes):
        return "", "no text"
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        text.encode("utf-8")  # JSON can spell half a character, as \\ud800
        return text, None if text else "empty"
    except UnicodeDecodeError:
        return value.decode("utf-8", errors="replace"), "invalid UTF-8 replaced"
    except UnicodeEncodeError:
        whole = value.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
        return whole, "invalid UTF-8 replaced"
