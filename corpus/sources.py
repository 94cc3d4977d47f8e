"""Where text comes from: files, tables, the Hugging Face hub, standard input, ready answers; and what is in them.

The main process only reads: `read` cuts a source, in order and in constant memory, into blocks. The workers make
documents of them: `documents` decodes, parses JSON, and names what is wrong. The blocks of a unit are always the same
ones, so a preparation that was killed goes on behind the block that it had reached.
"""

import json
import shutil
import sys
import sysconfig
from bisect import bisect_right
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path

import numpy as np

from corpus.packed import chunks, download
from corpus import synthetic
from nanoloop.files import replace_file, sha256_of_file
from nanoloop.options import UserError, reading as explained, require

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# nanoGPT's rules for this text: characters (on ASCII text bytes are characters), the last tenth is validation.
SHAKESPEARE_OPTIONS = {
    "name": "shakespeare_char",
    "tokenizer": "byte",
    "val_fraction": 0.1,
    "test_fraction": 0,
}
# Folders of Python source that are not what the interpreter's authors wrote for use: tests, copies of other projects.
NOT_LIBRARY = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "_vendor",
    "_vendored",
    "__pycache__",
}

BLOCK = 1_000_000  # bytes of lines or rows that are read at a time
PIECE = 4_000_000  # bytes of a text: a longer one becomes several documents, so that it never has to be held whole
LONGEST = 16_000_000  # bytes of a JSON line or a table's cell, which have to be held whole: a longer one is left out
TOO_LONG = "too long for one line or cell"
REMEDY = (
    "With a network, look at the name, --hf_config and --hf_split, and run the same command again. Without one, bring "
    "the files from elsewhere (hf download NAME --repo-type=dataset --local-dir=FOLDER) and type --source=FOLDER; or "
    "take --source=python, or text of your own"
)


# One thing to read from its beginning to its end. kind: text, jsonl, parquet, arrow, hf, synthetic, claude or tokens;
# source: under which name the report counts it; size: bytes on disk, for the progress bar.
Unit = namedtuple("Unit", "kind path source size", defaults=(0,))

# A part of a unit as the main process has read it. payload: a piece of a text, whole lines of JSON, or the values of rows;
# number: of its first line or row, from 1; used: bytes of the file so far; note: what was wrong; split: where its place
# decides that.
Block = namedtuple("Block", "payload number used note split", defaults=(0, 0, None, None))

# note: what was wrong with it ("empty", "broken JSON", "invalid UTF-8 replaced" …) or None; where: for people, the file
# with the line or row in it; split: where its source or its place decides that.
Document = namedtuple("Document", "text note where split", defaults=(None,))


# ---------------------------------------------------------------------------------------------------------------------
# From --source to units. The order of the files never depends on the file system.


def python_files(config, data_root: Path | None = None) -> dict[Path, str]:
    """The running interpreter's standard library, and with include_site_packages what is installed beside it; each file
    with the name of its package."""
    names = ("stdlib", "purelib", "platlib") if config.include_site_packages else ("stdlib",)
    files: dict[Path, str] = {}
    for root in dict.fromkeys(
        Path(sysconfig.get_path(name)).resolve() for name in names
    ):  # two are often one folder
        for file in sorted(root.rglob("*.py")):
            *folders, _ = file.relative_to(root).parts
            if not NOT_LIBRARY & set(folders):
                files[file] = [*folders, root.name][0]
    return files


def text_files(source: str) -> dict[Path, str]:
    """A file, a folder (everything below it but hidden files) or a glob: files in a fixed order, each with the topmost
    folder it lies in. Where there are tables nothing else is text: beside them lie descriptions."""
    files: dict[Path, str] = {}
    for path in sorted(map(Path, glob(source, recursive=True))) or [Path(source)]:
        told = "give python, shakespeare, hf:NAME, synthetic:TASKS, - or paths: files, folders, globs in quotes"
        require(path.exists(), f"--source={source}: there is no such file or folder, {told}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(path).parts
            if not any(part.startswith(".") for part in parts) and (
                file.is_file() or file.is_symlink()
            ):
                files[file] = parts[0] if len(parts) > 1 else source
    tables = {file: label for file, label in files.items() if file.suffix in (".parquet", ".arrow")}
    require(files, f"--source={source}: the folder holds no files")
    return tables or files


def token_files(sources: tuple[str, ...]) -> list[Path]:
    """The sources' files of ready tokens: llm.c's shards, by their first bytes, and nanoGPT's train.bin and val.bin."""
    paths = [Path(path) for source in sources for path in sorted(glob(source, recursive=True))]
    files = [
        file for path in paths for file in (sorted(path.glob("*")) if path.is_dir() else [path])
    ]
    return [
        file
        for file in files
        if file.suffix == ".bin" and (file.stem in ("train", "val") or has_magic(file))
    ]


def has_magic(path: Path) -> bool:
    return int(np.fromfile(path, "<i4", 1).sum()) in (20240520, 20240801)


def find_units(config, data_root: Path) -> list[Unit]:
    """What the options `config` (a PrepareConfig) ask for, in the order of reading. Raises UserError."""
    units: dict[str, Unit] = {}  # by path: a file named twice is read once
    for source in config.source:
        kind, _, rest = source.partition(":")
        if kind in ("hf", "synthetic", "claude") and rest:
            units[source] = Unit(kind, rest, source)
        elif ready := token_files((source,)):
            units |= {
                str(file): Unit("tokens", str(file), source, file.stat().st_size) for file in ready
            }
        else:
            special = {"python": python_files, "shakespeare": shakespeare_file, "-": standard_input}
            files = special[source](config, data_root) if source in special else text_files(source)
            for file, label in files.items():
                suffix = Path(file.name.removesuffix(".gz").removesuffix(".zst")).suffix[1:]
                lines = suffix == "jsonl" or suffix in ("json", "stdin") and config.text_key
                kind = "jsonl" if lines else suffix if suffix in ("parquet", "arrow") else "text"
                units.setdefault(
                    str(file),
                    Unit(kind, str(file), label, file.stat().st_size if file.exists() else 0),
                )
    return list(units.values())


def shakespeare_file(config, data_root: Path) -> dict[Path, str]:
    flags = " ".join(f"--{key}={value}" for key, value in SHAKESPEARE_OPTIONS.items())
    remedy = "With a local copy of nanoGPT's input.txt, type:\n  python prepare_data.py --source=PATH/input.txt "
    path = data_root / "tinyshakespeare.txt"
    return {download(SHAKESPEARE_URL, SHAKESPEARE_SHA256, path, remedy + flags): "shakespeare"}


def standard_input(config, data_root: Path) -> dict[Path, str]:
    """Standard input as a file: a tokenizer is trained before the text is encoded, so it is read twice."""
    data_root.mkdir(parents=True, exist_ok=True)
    path = data_root / f"{config.name or 'stdin'}.stdin"
    for left in data_root.glob(f"{path.stem}.*.stdin"):  # by a run that was killed
        left.unlink()
    replace_file(path, lambda file: shutil.copyfileobj(sys.stdin.buffer, file, 2**20))
    return {
        path.rename(path.with_suffix(f".{sha256_of_file(path)[:16]}.stdin")): "-"
    }  # another text, another source


# ---------------------------------------------------------------------------------------------------------------------
# Reading, in the main process.


def read(unit: Unit, config) -> Iterator[Block]:
    """A unit in blocks, holding a few megabytes. What cannot be read becomes a note. config.cuts: where a single text
    is split by position, in bytes: the ends of train and of test."""
    faults, block = [], None

    def until_fault() -> Iterator:
        try:
            yield from stream(unit, config)
        except (UserError, ImportError, MemoryError):
            raise
        except Exception as error:  # of many kinds: zlib's, zstandard's, pyarrow's own
            faults.append("unreadable" if isinstance(error, OSError) else "corrupt file")

    cut = {"jsonl": lines, "text": partial(pieces, cuts=config.cuts)}.get(unit.kind, iter)
    for block in cut(until_fault()):
        yield block
    yield from (Block(b"", note=note) for note in faults or ["empty"] * (block is None))


def stream(unit: Unit, config) -> Iterator:
    """A file's (bytes, position in the file), to be cut; or blocks of a few rows: the numbers of synthetic texts, which
    the workers make; Claude's answers; cells of a Parquet file, of what save_to_disk has written, or of a data set on
    the hub, streamed by `datasets`, whose version 4 and later run no code of its own."""
    if unit.kind in ("text", "jsonl"):
        yield from chunks(Path(unit.path))
    elif unit.kind == "synthetic":
        count = config.max_documents or 10_000
        yield from (Block([min(first + 1000, count)], first) for first in range(0, count, 1000))
    elif unit.kind == "claude":
        from corpus import claude  # which imports Document from here

        yield from (
            Block([answer]) for answer in claude.documents(Path(unit.path), config, config.answers)
        )
    else:
        number, key = 1, config.text_key or "text"
        with (
            explained(f"--source={unit.source} could not be read", REMEDY)
            if unit.kind == "hf"
            else nullcontext()
        ):
            names, tables = open_table(unit, config, key)
            require(
                key in names,
                f"{unit.path} has no column {key!r}: give --text_key, one of {', '.join(names)}",
            )
            for table in tables:
                for cells in (table[key].slice(i, 64) for i in range(0, len(table), 64)):
                    values = cells.cast(
                        "large_binary"
                    ).to_pylist()  # bytes: its UTF-8 is not trusted
                    yield Block(
                        [False if value and len(value) > LONGEST else value for value in values],
                        number,
                    )
                    number += len(values)


def open_table(unit: Unit, config, key: str) -> tuple[list[str], Iterator]:
    """(names of the columns, pyarrow tables)."""
    import pyarrow
    import pyarrow.parquet

    if unit.kind == "parquet":
        file = pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False, buffer_size=2**20)
        return file.schema_arrow.names, file.iter_batches(64, columns=[key])
    if unit.kind == "arrow":
        file = pyarrow.ipc.open_stream(pyarrow.OSFile(unit.path))
        return file.schema.names, file
    from datasets import load_dataset

    data = load_dataset(unit.path, config.hf_config, split=config.hf_split, streaming=True)
    return data.column_names or list(next(iter(data))), data.with_format("arrow").iter(
        batch_size=64
    )


def nanogpt_bytes(path: Path, ids: np.ndarray, tokenizer) -> np.ndarray:
    """nanoGPT's text by characters as a document of bytes. It keeps the vocabulary in meta.pkl, and a pickle can run
    code; but the vocabulary is the sorted characters of the input.txt beside it."""
    text = path.with_name("input.txt")
    told = f"{path} numbers characters by meta.pkl, a pickle, which can run code: it is not read"
    require(text.is_file(), f"{told}. Put nanoGPT's input.txt beside it")
    require(
        tokenizer.name == "byte",
        f"{path} is a text by characters: type --tokenizer=byte, or prepare {text}",
    )
    characters = np.array(sorted(set(text.read_text(encoding="utf-8"))))
    require(
        ids.max() < len(characters), f"{path} has more characters than {text}: it is another text"
    )
    content = characters[ids].tobytes().decode("utf-32").encode("utf-8")
    return np.append(tokenizer.end_of_text, np.frombuffer(content, np.uint8)).astype(np.uint16)


def pieces(source: Iterator, cuts: Sequence[int] = ()) -> Iterator[Block]:
    """A text in pieces of at most PIECE bytes, cut behind a line or at one of the `cuts`, never inside a character."""
    held, offset = bytearray(), 0
    for chunk, used in chain(source, [(b"", 0)]):
        held += chunk
        while len(held) > PIECE + 3 or held and not chunk:
            room = min([PIECE] + [cut - offset for cut in cuts if cut > offset])
            cut = (
                room
                if room < PIECE or room >= len(held)
                else held.rfind(b"\n", 0, room) + 1 or room
            )
            cut += next(
                (
                    i
                    for i in range(4)
                    if held[cut + i : cut + i + 1] < b"\x80" or held[cut + i] >= 0xC0
                ),
                0,
            )
            split = ("train", "test", "val")[bisect_right(cuts, offset)] if cuts else None
            yield Block(bytes(held[:cut]), 0, used, None, split)
            offset += cut
            del held[:cut]


def lines(source: Iterator) -> Iterator[Block]:
    """Whole lines, about BLOCK bytes of them at a time. One that is much longer than LONGEST is passed over."""
    held, number, long = bytearray(), 1, False
    for chunk, used in chain(source, [(b"", 0)]):
        if long and (b"\n" in chunk or not chunk):
            yield Block(b"", number, used, TOO_LONG)
            number, long, chunk = number + 1, False, chunk.partition(b"\n")[2]
        held += b"" if long else chunk
        cut = held.rfind(b"\n") + 1 if chunk else len(held)
        if cut and (len(held) >= BLOCK or not chunk):
            yield Block(bytes(held[:cut]), number, used)
            number += held.count(b"\n", 0, cut)
            del held[:cut]
        if len(held) > LONGEST:
            held, long = bytearray(), True


# ---------------------------------------------------------------------------------------------------------------------
# Understanding, in the workers.


def documents(unit: Unit, block: Block, config) -> Iterator[Document]:
    """All that was read; each fault is named."""
    if block.note:
        yield Document("", block.note, f"{unit.path}:{block.number}" if block.number else unit.path)
    elif unit.kind == "claude":
        yield from block.payload
    elif unit.kind == "synthetic":
        for index, split, text in synthetic.documents(
            unit.path, config.seed, block.payload[0], block.number
        ):
            yield Document(text, None, f"{unit.source} {index}", split)
    elif unit.kind == "jsonl":
        for number, line in enumerate(block.payload.split(b"\n"), block.number):
            if line.strip():
                yield Document(*parse(line, config.text_key or "text"), f"{unit.path}:{number}")
    elif isinstance(block.payload, bytes):
        yield Document(
            *(("", "binary") if b"\0" in block.payload else clean(block.payload)),
            unit.path,
            block.split,
        )
    else:
        for number, value in enumerate(block.payload, block.number):
            yield Document(*clean(value), f"{unit.path} row {number}")


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
        return "", TOO_LONG if value is False else "no text"
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    try:
        return raw.decode("utf-8"), None if raw else "empty"
    except UnicodeDecodeError:  # JSON can spell half a character, as \\ud800
        return raw.decode("utf-8", errors="replace"), "invalid UTF-8 replaced"
