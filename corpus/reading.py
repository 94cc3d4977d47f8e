"""Read a source, in order and in constant memory, into blocks.

The main process only reads; the workers turn blocks into documents (documents.py). The blocks of a
unit are always the same, so a preparation that was killed resumes behind the last block that it
finished.
"""

import codecs
import csv
import json
import re
from bisect import bisect_right
from collections import namedtuple
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from corpus import claude
from corpus.compressed import read_chunks, read_head
from corpus.destination import Cursor
from corpus.formats import SEPARATORS, read_header, text_column
from corpus.sources import HUB_HINT, Unit
from nanoloop.options import UserError, first_line, require

BATCH_BYTES = 1_000_000  # of a source, for one worker at a time
BLOCK = 1_000_000  # bytes of lines that are read at a time
PIECE = 4_000_000  # bytes: a longer text becomes several documents and is never held in memory
LONGEST = 16_000_000  # bytes of a JSON line or a cell, which is held in memory
TOO_LONG = "too long for one line or cell"
BROKEN_END = "broken JSON: the rest is not read"
UNEVEN_ROW = "more or fewer columns than the header"
OPEN_QUOTE = 'a cell that begins with " and does not end so, or is too long'
# The rest of a character in UTF-8 that began before; more than three such bytes are no UTF-8.
END_OF_CHARACTER = re.compile(rb"([\x80-\xbf]{1,3}(?![\x80-\xbf]))?")


@dataclass(slots=True)
class Block:
    """A part of a unit.

    payload: a piece of a text, whole lines of JSON, a table's cells with a note for each, the
    indices of synthetic documents, or one of Claude's answers. number: of its first line or row,
    from 1. note: what is wrong. split: where the position in a text decides it.
    """

    payload: bytes | list | range
    number: int = 0
    note: str | None = None
    split: str | None = None


# Blocks for one worker, pairs of (Unit, Block). cursor: behind them. bytes_before: of the corpus
# before them.
Batch = namedtuple("Batch", "cursor bytes_before blocks")


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
                yield Batch(Cursor(index, number, position), start, blocks)
                blocks = []
                start = position
        skip = 0
    yield Batch(Cursor(len(units), 0, position), start, blocks)


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
        if unit.kind == "hf":
            problem = f"--source={unit.source} could not be read ({first_line(error)})"
            raise UserError(f"{problem}: {HUB_HINT}") from None
        is_system = isinstance(error, OSError) and error.errno is not None
        note = "unreadable" if is_system else "corrupt file"
    if note:
        yield Block(b"", note=note)


def open_unit(unit, config):
    """Return an iterator of the blocks of a unit."""
    path = Path(unit.path)
    if unit.note:
        return iter([Block(b"", note=unit.note)])
    match unit.kind:
        case "text":
            return cut_pieces(read_chunks(path), unit.cuts)
        case "jsonl":
            return cut_lines(read_chunks(path))
        case "json":
            return cut_values(read_chunks(path))
        case "csv":
            return cut_cells(csv_cells(path, config.text_key or "text"))
        case "synthetic":
            indices = range(config.max_documents or 10_000)
            return (Block(indices[first : first + 1000]) for first in indices[::1000])
        case "claude":
            return (Block([answer]) for answer in claude.ask_all(path, config, unit.answers))
    return cut_cells(table_cells(unit, config))


# --------------------------------------------------------------------------------------------------
# Tables. A cell is a pair of its value and a note


def cut_cells(cells):
    """Cut cells into blocks of 64. At a fault, those before it come first."""
    number = 1
    block = []
    try:
        for cell in cells:
            block.append(cell)
            if len(block) == 64:
                yield Block(block, number)
                number += 64
                block = []
    except Exception:
        yield Block(block, number)
        raise
    if block:
        yield Block(block, number)


def table_cells(unit, config):
    """Yield the cells of a column. Raises UserError for a wrong one."""
    import pyarrow

    key = config.text_key or "text"
    schema, batches = open_table(unit, config, key)
    text_column(schema.empty_table(), key, unit.path)
    for batch in batches:
        # pyarrow.table would believe the offsets, and make the buffers as long as they say.
        column = text_column(pyarrow.Table.from_batches([batch]), key, unit.path)
        if column.type not in (pyarrow.string(), pyarrow.large_string()):
            column.validate(full=True)
        values = column.cast("large_binary")  # nobody has checked the UTF-8 of strings
        values.validate(full=True)  # reading a cell with wrong offsets would end the process
        for scalar in values:
            value = scalar.as_py()
            is_long = value and len(value) > LONGEST
            yield (None, TOO_LONG) if is_long else (value, None)


def open_table(unit, config, key):
    """Return the schema and an iterator of record batches."""
    import pyarrow
    import pyarrow.parquet

    if unit.kind == "parquet":
        file = pyarrow.parquet.ParquetFile(unit.path, pre_buffer=False, buffer_size=2**20)
        return file.schema_arrow, file.iter_batches(64, columns=[key])
    if unit.kind == "arrow":
        file = pyarrow.OSFile(unit.path)
        if file.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        file.seek(0)
        reader = pyarrow.ipc.open_stream(file)
        return reader.schema, reader
    # Version 4 and later run no code of a data set.
    from datasets import load_dataset

    name, _, split = unit.path.partition(":")
    data = load_dataset(name, config.hf_config, split=split, streaming=True)
    tables = data.with_format("arrow").iter(batch_size=64)
    first = next(tables)
    return first.schema, chain.from_iterable(map(pyarrow.Table.to_batches, chain([first], tables)))


def csv_cells(path, key):
    """Yield the cells of a column of a table in text. Raises UserError for a wrong one.

    A line or cell longer than LONGEST is a fault.
    """
    delimiter, _ = read_header(read_head(path).decode(errors="replace"))
    csv.field_size_limit(LONGEST)
    # pyarrow.csv gives up on an uneven row with invalid UTF-8.
    # Without strict, a quotation mark that is not closed takes all rows behind it into its cell.
    rows = csv.reader(decode_lines(path), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(rows, [])]
    hint = f"give --text_key, one of {', '.join(names[:20])}"
    require(key in names, f"{path} has no column {key!r}: {hint}")
    column = names.index(key)
    while True:
        try:
            row = next(rows, None)
        except csv.Error:  # the reader resumes behind it
            yield None, OPEN_QUOTE
            continue
        if row is None:
            return
        if len(row) == len(names):
            yield row[column].encode(errors="surrogateescape"), None
        elif row:
            yield None, UNEVEN_ROW


def decode_lines(path):
    for block in cut_lines(read_chunks(path)):
        if block.note:
            raise ValueError(block.note)
        for line in block.payload.splitlines(keepends=True):
            yield line.decode(errors="surrogateescape")


# --------------------------------------------------------------------------------------------------
# Text and JSON


def cut_pieces(chunks, cuts):
    """Cut a text into pieces of at most PIECE bytes, and at the `cuts`.

    A piece ends behind a line where there are lines, and never inside a character.
    """
    pending = bytearray()
    offset = 0  # of pending in the text
    for chunk in chunks:
        pending += chunk
        is_last = not chunk
        while len(pending) > PIECE + 3 or (is_last and pending):
            limit = min([PIECE, *(cut - offset for cut in cuts if cut > offset)])
            size = limit
            if limit == PIECE < len(pending):
                size = pending.rfind(b"\n", 0, limit) + 1 or limit
            size = END_OF_CHARACTER.match(pending, size).end()
            split = ("train", "test", "val")[bisect_right(cuts, offset)] if cuts else None
            yield Block(bytes(pending[:size]), split=split)
            offset += size
            del pending[:size]


def cut_lines(chunks):
    """Cut a file into blocks of whole lines, about BLOCK bytes each.

    A line much longer than LONGEST becomes a block with a note.
    """
    pending = bytearray()
    number = 1  # of the first line in pending
    is_skipping = False  # inside a line that is too long
    for chunk in chunks:
        is_last = not chunk
        if is_skipping:
            _, newline, chunk = chunk.partition(b"\n")
            is_skipping = not newline
        pending += chunk
        size = len(pending) if is_last else pending.rfind(b"\n") + 1
        if size and (is_last or len(pending) >= BLOCK):
            yield Block(bytes(pending[:size]), number)
            number += pending.count(b"\n", 0, size)
            del pending[:size]
        if len(pending) > LONGEST:
            yield Block(b"", number, TOO_LONG)
            number += 1
            pending.clear()
            is_skipping = True


def cut_values(chunks):
    """Cut a JSON list, or values in a row, into blocks of one value a line.

    Nothing behind a fault is read: where the next value begins is unknown.
    """
    decoder = json.JSONDecoder()
    characters = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    pending = ""
    number = 1  # of the first value in pending
    is_list = False
    for chunk in chunks:
        pending += characters.decode(chunk)
        end = 0
        values = []
        while True:
            between = SEPARATORS.match(pending, end)
            try:
                _, stop = decoder.raw_decode(pending, between.end())
            except (ValueError, RecursionError):
                break
            if chunk and stop == len(pending):  # a number may continue
                break
            is_list |= "[" in between[0]
            # Between the parts of a value a line break means nothing, inside a text it is no JSON.
            values.append(pending[between.end() : stop].replace("\n", " "))
            end = stop
        if values:
            payload = "\n".join(values).encode(errors="surrogateescape")
            yield Block(payload, number)
            number += len(values)
        pending = pending[end:]
        if len(pending) > LONGEST:
            yield Block(b"", number, f"{TOO_LONG}: the rest is not read")
            return
    is_closed = "]" in pending or not is_list
    if not (is_closed and SEPARATORS.fullmatch(pending)):
        yield Block(b"", number, BROKEN_END)
