"""What a preparation writes: shards, then the report and meta.json."""

import hashlib
import json
import math
import shlex
import time
from pathlib import Path

import numpy as np

from corpus.curation import ENGLISH, Seen, View, share
from corpus.destination import Cursor, Progress, count, discard
from corpus.documents import Row, encode_document
from corpus.overlap import read_blocks
from corpus.report import write_report
from corpus.sources import has_magic, is_prepared, readable, split_in_words
from nanoloop.data import FORMATS, HEADER_BYTES, HEADER_INTS, SPLITS, open_shard
from nanoloop.files import link_or_copy, sha256_of_file, write_json
from nanoloop.options import UserError, require
from nanoloop.tokenizer import Tokenizer, load_tokenizer

LONGEST_CHARACTER = 4  # bytes in UTF-8
COMMIT_SECONDS = 3.0  # between two notes of the progress
HELD_BYTES = 128_000_000  # of tokens that wait to be written


class Writer:
    """Takes rows in order, finds copies, counts, and writes tokens.

    progress: is in progress.json when all that it counts is on the disk. official: splits of a data
    set that no fraction makes; of a limit each has its fraction at most.
    """

    def __init__(self, config, folder, tokenizer, progress, official=frozenset()):
        self.config = config
        self.limits = {
            "documents": config.max_documents or math.inf,
            "bytes": config.max_bytes or math.inf,
        }
        self.official = official
        self.folder = folder
        self.progress = progress
        self.tokenizer = tokenizer
        self.seen = Seen(config)
        self.rows = []  # that wait to be written
        self.held_bytes = 0  # of their tokens
        self.committed = time.monotonic()
        for name, size in progress.appended.items():
            with open(folder / name, "ab") as file:
                file.truncate(size)  # what is behind is not in the progress
        with open(folder / "signatures.bin", "rb") as file:
            while len(kept := np.fromfile(file, np.uint64, 1_000_000)):
                self.seen.remember(kept)

    def room(self):
        """Return how many documents, and bytes of text, the options still want."""
        kept = self.progress.kept()
        return {key: limit - kept[key] for key, limit in self.limits.items()}

    def is_full(self):
        """Say whether the options want no more documents, or less than a character."""
        room = self.room()
        return room["documents"] < 1 or room["bytes"] < LONGEST_CHARACTER

    def has_share(self, split):
        """Say whether a split may have another document."""
        if split not in self.official:
            return True
        fraction = getattr(self.config, f"{split}_fraction")
        counts = self.progress.splits[split]
        return not any(counts[key] >= fraction * limit for key, limit in self.limits.items())

    def add(self, row):
        """Take the next document. Raises UserError for a fault, with --strict=True."""
        if self.is_full():
            return
        progress = self.progress
        if row.signature and row.drop_rule is None:
            row.drop_rule = self.seen.verdict(np.frombuffer(row.signature, dtype=np.uint64))
        # A long text has several rows: its fault counts once.
        if row.note and progress.fault != [row.note, row.where]:
            progress.fault = [row.note, row.where]
            count_note(progress, row, self.config.strict)
        if row.drop_rule:
            count_example(progress.dropped, row.drop_rule, row)
        elif row.size and self.has_share(row.split):
            if row.size > self.room()["bytes"]:
                self.shorten(row)
            self.keep(row)

    def shorten(self, row):
        """Cut the text of a row to the room that is left, at the end of a character.

        The report may look at the rest.
        """
        raw = self.tokenizer.decode_bytes(np.frombuffer(row.content, self.tokenizer.dtype)[1:])
        view = View(raw[: self.room()["bytes"]].decode(errors="ignore"))
        row.size = len(view.raw)
        row.content = encode_document(view, self.tokenizer)

    def keep(self, row):
        progress = self.progress
        count(progress.splits, row.split, row.size)
        count(progress.sources, row.source, row.size)
        progress.lengths[row.size.bit_length()] += 1
        largest = {known[1]: known for known in progress.largest}
        size, *_ = largest.pop(row.where, [0])  # rows of one text add up
        largest[row.where] = [size + row.size, row.where, row.head]
        progress.largest = sorted(largest.values(), key=lambda known: -known[0])[:5]
        self.rows.append(row)
        self.held_bytes += len(row.content)

    def is_due(self):
        """Say whether to commit. The clock has no influence on what is shuffled together."""
        if self.held_bytes > HELD_BYTES:
            return True
        if self.config.shuffle_buffer:
            return len(self.rows) >= self.config.shuffle_buffer
        return time.monotonic() - self.committed >= COMMIT_SECONDS

    def commit(self, cursor: Cursor):
        """Write the rows that wait, all up to `cursor`, and note the progress."""
        progress = self.progress
        appended = {
            "signatures.bin": b"".join(row.signature for row in self.rows),
            "sample.jsonl": "".join(row.sample for row in self.rows).encode(),
        }
        for name, content in appended.items():
            with open(self.folder / name, "ab") as file:
                progress.appended[name] += file.write(content)
        if self.config.shuffle_buffer:
            rng = np.random.default_rng([self.config.seed, *cursor])
            self.rows = [self.rows[i] for i in rng.permutation(len(self.rows))]
        for split, counts in progress.splits.items():
            parts = [row.content for row in self.rows if row.split == split]
            tokens = np.frombuffer(b"".join(parts), dtype=self.tokenizer.dtype)
            shard_tokens = self.config.shard_tokens
            append_tokens(self.folder, split, counts["tokens"], tokens, shard_tokens)
            counts["tokens"] += len(tokens)
        self.rows = []
        self.held_bytes = 0
        progress.cursor = cursor
        write_json(self.folder / "progress.json", vars(progress))
        self.committed = time.monotonic()


def count_note(progress, row, strict):
    """Count what is noted of a document. Raises UserError for a fault if `strict`."""
    hint = "Correct it, leave it out, or type --strict=False to count faults"
    is_fault = not row.note.startswith(("empty", "left out"))
    require(not (strict and is_fault), f"{row.where}: {row.note}. {hint}")
    count_example(progress.notes, row.note, row)


def count_example(table, name, row):
    examples = count(table, name, row.size).setdefault("examples", [])
    if len(examples) < 10:
        examples.append([row.size, row.where, row.head])


def append_tokens(folder, split, position, tokens, shard_tokens):
    """Write tokens at `position` of a split, in shards of `shard_tokens` tokens.

    tokens: uint16 or uint32. The position alone says where a token goes, so a resumed preparation
    can write the same tokens again.
    """
    headers = {dtype: header for header, dtype in FORMATS.items()}
    while len(tokens):
        index, offset = divmod(position, shard_tokens)
        part = tokens[: shard_tokens - offset]
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = (*headers[tokens.dtype.str], offset + len(part))
        with open(folder / f"{split}_{index:06d}.bin", "r+b" if offset else "wb") as file:
            file.seek(HEADER_BYTES + offset * tokens.itemsize)
            file.write(part.tobytes())
            file.seek(0)
            file.write(header.tobytes())
        tokens = tokens[len(part) :]
        position += len(part)


# --------------------------------------------------------------------------------------------------
# Ready tokens


def import_tokens(units, folder, tokenizer, progress, strict):
    """Import llm.c's shards as links, bare tokens as new shards. Raises UserError.

    The word val or test in a name decides the split. strict: as in count_note.
    """
    for unit in units:
        if unit.note:
            count_note(progress, Row(unit.source, unit.path, unit.note), strict)
    paths = [Path(unit.path) for unit in readable(units)]
    bare = [path for path in paths if not has_magic(path)]
    if 0 < len(bare) < len(paths):
        raise UserError(
            f"{bare[0]} does not begin as a shard of llm.c, others do: download it again if it is "
            "one, or import it separately"
        )
    splits = {path: split_in_words(path.name) or "train" for path in paths}
    require(
        "val" in splits.values(),
        f"none of these {len(paths)} token files has 'val' in its name: rename one, data_val.bin",
    )
    for parent in {path.parent for path in paths if is_prepared(path.parent)}:
        is_same = load_tokenizer(str(parent)).fingerprint == tokenizer.fingerprint
        hint = f"type --tokenizer={parent}, and import tokens of another tokenizer separately"
        require(is_same, f"{parent} has another tokenizer than {tokenizer.name}: {hint}")
    for path, split in splits.items():
        vocab_size = tokenizer.vocab_size
        hint = "Download or copy it again"
        tokens = open_bare(path, vocab_size) if bare else open_shard(path, hint)
        require(len(tokens), f"{path} holds no token. {hint}")
        counts = progress.splits[split]
        for block in read_blocks([tokens], 2**24):
            require(
                block.max() < vocab_size,
                f"{path} holds token {block.max()}, the tokenizer {tokenizer.name} has "
                f"{vocab_size}: name the tokenizer of these tokens by --tokenizer",
            )
            block = block.astype(tokenizer.dtype)
            if bare:
                shard_tokens = progress.plan["shard_tokens"]
                append_tokens(folder, split, counts["tokens"], block, shard_tokens)
            counts["tokens"] += len(block)
            counts["bytes"] += int(tokenizer.token_bytes[block].sum())
            counts["documents"] += int((block == tokenizer.end_of_text).sum())
        if not bare:
            index = len(list(folder.glob(f"{split}_*.bin")))
            link_or_copy(path, folder / f"{split}_{index:06d}.bin")
    if not progress.kept()["documents"]:
        print(
            f"warning: end-of-text ({tokenizer.end_of_text}) never occurs in these tokens: either "
            f"they are one long text, or their tokenizer is not {tokenizer.name} (--tokenizer)"
        )


def open_bare(path, vocab_size):
    """Return the tokens of a file without a header, memory-mapped. Raises UserError.

    The widest type of which all tokens are in the vocabulary: read as a narrower one, the upper
    halves would be tokens 0. With a wider one than the file's, two tokens are one large number.
    """
    size = path.stat().st_size
    is_even = size % 2 == 0 < size
    require(is_even, f"{path} holds {size:,} bytes, not tokens of two: download or copy it again")
    for dtype in ("<u8", "<u4"):
        if size % np.dtype(dtype).itemsize == 0:
            tokens = np.memmap(path, dtype, "r")
            if tokens[: 2**20].max() < vocab_size:
                return tokens
    return np.memmap(path, "<u2", "r")


# --------------------------------------------------------------------------------------------------
# The end


def finish(folder: Path, tokenizer: Tokenizer, progress: Progress) -> None:
    """Write the report, then meta.json.

    Raises UserError, and removes the folder, if there is no training text.
    """
    if progress.splits["train"]["tokens"] == 0:
        discard(folder)
        kept = progress.kept()
        reasons = list_notes(progress.notes)
        if progress.dropped:
            reasons.append(describe_drops(progress.dropped, kept))
        if kept["documents"]:
            hint = "lower --val_fraction and --test_fraction, or add text"
            reasons.insert(0, f"every document ({kept['documents']:,}) is in val or test: {hint}")
        found = "; ".join(reasons) or "nothing was found"
        source = " ".join(progress.plan["source"])
        raise UserError(f"--source={source} has no training text: {found}")
    shards = {}
    rows = []
    for split in SPLITS:
        paths = sorted(folder.glob(f"{split}_*.bin"))
        shards[split] = [open_shard(path, "Run the same command again") for path in paths]
        for path, tokens in zip(paths, shards[split]):
            row = {"file": path.name, "split": split, "tokens": len(tokens)}
            rows.append(row | {"sha256": sha256_of_file(path)})
    (folder / "sample.jsonl").touch()  # of ready tokens there is none
    write_report(folder, progress, tokenizer, shards)
    write_json(folder / "meta.json", make_meta(rows, tokenizer, progress))


def list_notes(notes: dict) -> list[str]:
    """Return what was noted, each with its count and an example."""
    return [
        f"{row['documents']:,} {name} (such as {row['examples'][0][1]})"
        for name, row in notes.items()
    ]


def describe_drops(dropped: dict, kept: dict) -> str:
    """Return a line that says how much was dropped, then by which rules."""
    documents = sum(row["documents"] for row in dropped.values())
    size = sum(row["bytes"] for row in dropped.values())
    total = documents + kept["documents"]
    part = share(size, size + kept["bytes"])
    rules = ", ".join(list_notes(dropped))
    line = f"dropped {documents:,} of {total:,} documents, {part:.0%} of the text: {rules}"
    english = [rule for rule in dropped if rule.partition("=")[0] in ENGLISH]
    if sum(dropped[rule]["documents"] for rule in english) > 0.05 * total:
        line += f". {english[0]} is made for English: for other languages type --quality=unicode"
    return line


def describe(folder: Path) -> None:
    """Print what a complete data folder holds, and what to type next."""
    report = json.loads((folder / "report.json").read_bytes())
    for split, counts in report["splits"].items():
        figures = [f"{counts[name]:>13,} {name}" for name in ("documents", "tokens", "bytes")]
        print(f"{split:5}", *figures)
    if report["notes"]:
        print(f"notes: {'; '.join(list_notes(report['notes']))}")
    if report["dropped"]:
        print(describe_drops(report["dropped"], report["kept"]))
    for warning in report["warnings"]:
        print(f"warning: {'. '.join(warning)}")
    print(f"{folder} is ready: a vocabulary of {report['vocabulary']:,} tokens")
    print(f"report: {folder / 'report.html'}")
    command = ["config/quickstart.py", f"--data={folder}", f"--out=out/{folder.name}"]
    for recipe in sorted(Path("config").glob("*.py")):
        if f'\ndata = "{folder}"\n' in recipe.read_text(encoding="utf-8"):
            command = [str(recipe)]
    print(f"to train on it: python train.py {shlex.join(command)}")


def make_meta(shards, tokenizer, progress):
    """Return the content of meta.json."""
    lines = [tokenizer.fingerprint] + [f"{row['file']} {row['sha256']}" for row in shards]
    return {
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        "prepared_from": progress.plan,
        "splits": progress.splits,
        "shards": shards,
        "notes": progress.notes,
        "dropped": progress.dropped,
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
    }
