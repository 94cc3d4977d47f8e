"""The end of a preparation: shards, meta.json and the report, in a folder that is renamed last."""

import hashlib
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from corpus.curation import Seen
from corpus.documents import Row
from corpus.report import write_report
from corpus.sources import Cursor, has_magic
from nanoloop.data import FORMATS, HEADER_BYTES, HEADER_INTS, SPLITS, open_shard
from nanoloop.files import link_or_copy, replace_folder, sha256_of_file, write_json
from nanoloop.options import UserError, require
from nanoloop.tokenizer import Tokenizer

COMMIT_SECONDS = 3.0  # between two notes of the progress
HELD_BYTES = 128_000_000  # of tokens that wait to be written


@dataclass
class Progress:
    """What a preparation that was killed resumes from, and what the report counts.

    plan: source and options. splits, sources, notes, dropped: counts by name. lengths: documents by
    the bits of their size. largest: [size, where, head] of the largest documents. fault: the last
    [note, where]. appended: bytes of the files in which signatures and the sample grow.
    """

    plan: dict
    cursor: Cursor = Cursor(0, 0, 0)
    splits: dict = field(
        default_factory=lambda: {
            split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS
        }
    )
    sources: dict = field(default_factory=dict)
    notes: dict = field(default_factory=dict)
    dropped: dict = field(default_factory=dict)
    lengths: list = field(default_factory=lambda: [0] * 32)
    largest: list = field(default_factory=list)
    fault: list | None = None
    appended: dict = field(default_factory=lambda: {"signatures.bin": 0, "sample.jsonl": 0})


class Writer:
    """Take rows in order, find copies, count, and write tokens.

    progress: noted in progress.json when all that it counts is on the disk.
    """

    def __init__(self, config, folder: Path, tokenizer: Tokenizer, progress: Progress):
        self.config = config
        self.folder = folder
        self.progress = progress
        self.dtype = tokenizer.dtype
        self.seen = Seen(config)
        self.rows = []  # that wait to be written
        self.held_bytes = 0
        self.appended = {name: bytearray() for name in progress.appended}
        self.committed = time.monotonic()
        for name, size in progress.appended.items():
            (folder / name).touch()
            os.truncate(folder / name, size)  # what is behind is not in the progress
        with open(folder / "signatures.bin", "rb") as file:
            while len(kept := np.fromfile(file, np.uint64, 1_000_000)):
                self.seen.remember(kept)

    def is_full(self) -> bool:
        """Say whether the options want no more documents or bytes."""
        splits = self.progress.splits.values()
        n_documents = sum(split["documents"] for split in splits)
        n_bytes = sum(split["bytes"] for split in splits)
        max_documents = self.config.max_documents or math.inf
        return n_documents >= max_documents or n_bytes >= (self.config.max_bytes or math.inf)

    def add(self, row: Row) -> None:
        """Take the next document. Raises UserError for a fault, with --strict=True."""
        if self.is_full():
            return
        progress = self.progress
        if row.signature and row.drop_rule is None:
            row.drop_rule = self.seen.verdict(np.frombuffer(row.signature, dtype=np.uint64))
        # A long text has several rows: its fault counts once.
        if row.note and progress.fault != [row.note, row.where]:
            hint = "Correct it, leave it out, or type --strict=False to count faults"
            is_fault = self.config.strict and row.note != "empty"
            require(not is_fault, f"{row.where}: {row.note}. {hint}")
            progress.fault = [row.note, row.where]
            count_example(progress.notes, row.note, row)
        if row.drop_rule:
            count_example(progress.dropped, row.drop_rule, row)
        elif row.size:
            self.keep(row)

    def keep(self, row: Row) -> None:
        progress = self.progress
        count(progress.splits, row.split, row)
        count(progress.sources, row.source, row)
        progress.lengths[row.size.bit_length()] += 1
        # Rows of one text add up.
        others = [known for known in progress.largest if known[1] != row.where]
        before = sum(known[0] for known in progress.largest if known[1] == row.where)
        others.append([before + row.size, row.where, row.head])
        progress.largest = sorted(others, key=lambda known: -known[0])[:5]
        self.appended["signatures.bin"] += row.signature
        self.appended["sample.jsonl"] += row.sample.encode()
        self.rows.append(row)
        self.held_bytes += len(row.content)

    def is_due(self) -> bool:
        """Say whether to commit. The clock has no influence on what is shuffled together."""
        if self.held_bytes > HELD_BYTES or self.is_full():
            return True
        if self.config.shuffle_buffer:
            return len(self.rows) >= self.config.shuffle_buffer
        return time.monotonic() - self.committed >= COMMIT_SECONDS

    def commit(self, cursor: Cursor) -> None:
        """Write the rows that wait, all up to `cursor`, and note the progress."""
        progress = self.progress
        if self.config.shuffle_buffer:
            rng = np.random.default_rng([self.config.seed, *cursor])
            self.rows = [self.rows[i] for i in rng.permutation(len(self.rows))]
        for split in SPLITS:
            parts = [row.content for row in self.rows if row.split == split]
            tokens = np.frombuffer(b"".join(parts), dtype=self.dtype)
            counts = progress.splits[split]
            shard_tokens = self.config.shard_tokens
            append_tokens(self.folder, split, counts["tokens"], tokens, shard_tokens)
            counts["tokens"] += len(tokens)
        for name, content in self.appended.items():
            with open(self.folder / name, "ab") as file:
                progress.appended[name] += file.write(content)
            content.clear()
        self.rows = []
        self.held_bytes = 0
        progress.cursor = cursor
        write_json(self.folder / "progress.json", asdict(progress))
        self.committed = time.monotonic()


def count(table: dict, name: str, row: Row) -> dict:
    counts = table.setdefault(name, {"documents": 0, "bytes": 0})
    counts["documents"] += 1
    counts["bytes"] += row.size
    return counts


def count_example(table: dict, name: str, row: Row) -> None:
    examples = count(table, name, row).setdefault("examples", [])
    if len(examples) < 10:
        examples.append([row.size, row.where, row.head])


def append_tokens(
    folder: Path, split: str, position: int, tokens: np.ndarray, shard_tokens: int
) -> None:
    """Write tokens at `position` of a split's stream, in shards of `shard_tokens` tokens.

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


def import_tokens(
    paths: list[Path], folder: Path, tokenizer: Tokenizer, progress: Progress
) -> None:
    """Import llm.c's shards as links, and nanoGPT's uint16 without a header as new shards.

    A name with val or test in it decides the split. Raises UserError.
    """
    bare = [path for path in paths if not has_magic(path)]
    message = f"{bare[:1]} has no header, others have one: import them separately"
    require(len(bare) in (0, len(paths)), message)
    has_val = any("val" in path.name for path in paths)
    message = (
        f"none of these {len(paths)} token files has 'val' in its name: rename one, data_val.bin"
    )
    require(has_val, message)
    for path in paths:
        split = next((split for split in ("val", "test") if split in path.name), "train")
        tokens = np.memmap(path, "<u2", "r") if bare else open_shard(path, "Download it again")
        if path.with_name("meta.pkl").exists():
            tokens = decode_nanogpt(path, tokens, tokenizer)
        counts = progress.splits[split]
        for start in range(0, len(tokens), 2**24):
            block = tokens[start : start + 2**24]
            message = (
                f"{path} holds token {block.max()}, the tokenizer {tokenizer.name} has "
                f"{tokenizer.vocab_size}: name the tokenizer of these tokens by --tokenizer"
            )
            require(block.max() < tokenizer.vocab_size, message)
            if bare:
                shard_tokens = progress.plan["shard_tokens"]
                append_tokens(folder, split, counts["tokens"], block, shard_tokens)
            counts["tokens"] += len(block)
            counts["bytes"] += int(tokenizer.token_bytes[block].sum())
            counts["documents"] += int((block == tokenizer.end_of_text).sum())
        if not bare:
            index = len(list(folder.glob(f"{split}_*.bin")))
            link_or_copy(path, folder / f"{split}_{index:06d}.bin")


def decode_nanogpt(path: Path, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return nanoGPT's text of numbered characters as one document of bytes, uint16.

    Its vocabulary is in meta.pkl, and a pickle can run code; but it is the sorted characters of
    the input.txt beside it. Raises UserError.
    """
    text = path.with_name("input.txt")
    message = (
        f"{path} needs nanoGPT's input.txt beside it: meta.pkl is a pickle, which can run code"
    )
    require(text.is_file(), message)
    is_byte = tokenizer.name == "byte"
    require(is_byte, f"{path} holds characters: type --tokenizer=byte, or prepare {text}")
    characters = np.array(sorted(set(text.read_text(encoding="utf-8"))))
    is_same = ids.max() < len(characters)
    require(is_same, f"{path} has more characters than {text}: it is another text")
    content = characters[ids].tobytes().decode("utf-32").encode()
    return np.append(tokenizer.end_of_text, np.frombuffer(content, np.uint8)).astype(np.uint16)


# --------------------------------------------------------------------------------------------------
# The end


def finish(partial: Path, final: Path, tokenizer: Tokenizer, progress: Progress) -> Path:
    """Write meta.json and the report, and rename the folder. Raises UserError without train."""
    rows = [*progress.notes.items(), *progress.dropped.items()]
    notes = [f"{row['documents']:,} {name} (such as {row['examples'][0][1]})" for name, row in rows]
    if progress.splits["train"]["tokens"] == 0:
        shutil.rmtree(partial)
        held_out = sum(progress.splits[split]["documents"] for split in ("val", "test"))
        found = "; ".join([f"{held_out:,} documents in val and test", *notes])
        raise UserError(
            f"--source={' '.join(progress.plan['source'])} has no training text: {found}. Give "
            "text in UTF-8, or lower --val_fraction and --test_fraction"
        )
    shards, opened = list_shards(partial)
    write_json(partial / "meta.json", make_meta(shards, tokenizer, progress))
    warnings = []
    if (partial / "sample.jsonl").exists():  # ready tokens have no text to report on
        meta = progress.plan | {"name": final.name}
        warnings = write_report(partial, progress, meta, tokenizer, opened)
    for name in ("progress.json", *progress.appended):
        (partial / name).unlink(missing_ok=True)
    replace_folder(partial, final)
    for split, counts in progress.splits.items():
        line = f"{split:5}  {counts['documents']:>8,} documents  {counts['tokens']:>13,} tokens"
        if counts["tokens"]:
            line += f", {counts['bytes'] / counts['tokens']:.2f} bytes per token"
        print(line)
    if notes:
        print(f"notes: {'; '.join(notes)}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"{final} is ready: a vocabulary of {tokenizer.vocab_size:,} tokens")
    return final


def list_shards(folder: Path) -> tuple[list[dict], dict[str, list[np.ndarray]]]:
    """Return the shards as meta.json lists them, and their tokens by split."""
    rows = []
    opened = {split: [] for split in SPLITS}
    for split in SPLITS:
        for path in sorted(folder.glob(f"{split}_*.bin")):
            tokens = open_shard(path, "Run the same command again")
            opened[split].append(tokens)
            sha256 = sha256_of_file(path)
            rows.append(
                {"file": path.name, "split": split, "tokens": len(tokens), "sha256": sha256}
            )
    return rows, opened


def make_meta(shards: list[dict], tokenizer: Tokenizer, progress: Progress) -> dict:
    """Return the content of meta.json."""
    lines = [tokenizer.fingerprint] + [f"{row['file']} {row['sha256']}" for row in shards]
    meta = {
        "fingerprint": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        "prepared_from": progress.plan,
        "splits": progress.splits,
        "shards": shards,
    }
    for kind in ("notes", "dropped"):
        meta[kind] = {
            name: {
                "documents": row["documents"],
                "examples": [where for _, where, _ in row["examples"]],
            }
            for name, row in getattr(progress, kind).items()
        }
    meta["tokenizer"] = {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }
    return meta
