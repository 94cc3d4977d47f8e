"""From any text to a batch of tokens: the command, the tokenizers, the shard format and the reader.

    python prepare_data.py --source=python                        # the standard library's source, a byte-pair tokenizer
    python prepare_data.py --source=my/texts --name=mine --tokenizer=bpe:8192
    python prepare_data.py --source=shakespeare                   # nanoGPT's benchmark text (needs a network)

The result is a folder, data/<name>/, that says everything about itself:

    train_000000.bin …  val_000000.bin …  test_000000.bin …       token shards, in llm.c's format
    tokenizer.json      the exact bytes of every token, and how text is cut into tokens
    meta.json           where the text came from, counts, checksums, what was left out and why

Reading order: tokenizers, shards, the reader (what train.py uses), the preparation, the command.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from corpus.claude import ClaudeConfig
from corpus.curation import CurationConfig, Seen
from corpus.report import write_report
from corpus.sources import (
    SHAKESPEARE_OPTIONS,
    find_units,
    has_magic,
    nanogpt_bytes,
    read,
    token_files,
)
from corpus.worker import Row, Understanding, batches, bpe_texts
from corpus.workers import ordered_map
from corpus.bpe import train_bpe
from nanoloop.data import FORMATS, HEADER_BYTES, HEADER_INTS, SPLITS, open_shard
from nanoloop.files import link_or_copy, replace_folder, sha256_of_file, write_json
from nanoloop.options import UserError, read_options, require, run_program as run_command
from nanoloop.tokenizer import Tokenizer, load_tokenizer

# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers. A token is a byte string, so any text can be encoded and the bytes of a prediction can be counted exactly.


# How text is cut into pieces, within which byte pairs are merged: contractions, words, digits, punctuation, line ends,
# white space. These are GPT-4's way and GPT-2's, as tiktoken writes them, and what gigatoken calls them.


# ---------------------------------------------------------------------------------------------------------------------
# Shards, in llm.c's format: 256 little-endian int32 (magic, version, token count, zeros), then the tokens.


# ---------------------------------------------------------------------------------------------------------------------
# The reader: what train.py draws its batches from.


# ---------------------------------------------------------------------------------------------------------------------
# The preparation: the main process reads in order, workers turn what it read into tokens, it writes them in order.


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CurationConfig, ClaudeConfig):
    """Text to data/<name>/: token shards, a tokenizer, meta.json and a report."""

    source: tuple[
        str, ...
    ]  # python, shakespeare, hf:NAME, synthetic:TASKS, claude:PROMPTS.jsonl, - (stdin), or paths
    name: str | None = None  # the folder below data/; None: made from the source
    tokenizer: str | None = (
        None  # byte, bpe:N, tiktoken's gpt2 …, or a folder to take it from; None: bpe:4096
    )
    text_key: str | None = (
        None  # the field of JSON or the column of a table that holds the text; None: text
    )
    hf_config: str | None = None  # of a Hugging Face data set, as sample-10BT
    hf_split: str = "train"  # of a Hugging Face data set
    max_documents: int | None = None  # stop after so many documents were kept
    max_bytes: int | None = None  # stop after so many bytes of text were kept
    val_fraction: float | None = None  # share of the text held out to steer by; None: 0.05
    test_fraction: float | None = None  # share held out to confirm with; None: 0.05
    shuffle_buffer: int | None = (
        None  # write at least so many documents at a time in random order; None: as they come
    )
    seed: int = 0  # of that order, and of synthetic text
    include_site_packages: bool = (
        False  # with --source=python: the installed packages' sources too, hundreds of MB
    )
    strict: bool = False  # stop at the first fault in the input, instead of counting it
    workers: int | None = (
        None  # processes; None: as many as cores, none for a small source. The result is the same
    )
    shard_tokens: int = 100_000_000  # tokens per shard file
    overwrite: bool = False  # replace data/<name> if it is there


def append_tokens(folder, split, position, tokens, shard_tokens):
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


SMALL_BYTES = 4_000_000  # a smaller source is not worth starting workers
COMMIT_SECONDS = 3.0  # between two notes of progress
HELD_BYTES = 128_000_000  # of tokens that wait to be written


def beginning(plan: dict) -> dict:
    """What is counted, and the place that was reached: see corpus.worker.batches."""
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    return {
        "plan": plan,
        "place": [0, 0, 0],
        "splits": counts,
        "sources": {},
        "notes": {},
        "dropped": {},
        "lengths": [0] * 32,
        "largest": [],
        "fault": None,
        "appended": {"signatures.bin": 0, "sample.jsonl": 0},
    }


class Writer:
    """The main process's half: takes the rows in order, finds copies, keeps count, writes tokens.

    progress: all that going on after a kill needs, and what the report counts; it is noted in progress.json when all
    before it is written. appended: what is to be added to the files in which signatures and the report's sample grow.
    """

    def __init__(self, config: PrepareConfig, folder: Path, tokenizer: Tokenizer, progress: dict):
        self.config, self.folder, self.progress, self.noted = (
            config,
            folder,
            progress,
            time.monotonic(),
        )
        self.dtype, self.seen, self.items, self.held = tokenizer.dtype, Seen(config), [], 0
        self.appended = {name: bytearray() for name in progress["appended"]}
        for name, size in progress["appended"].items():
            (folder / name).touch()
            os.truncate(folder / name, size)  # what came after the note comes again
        with open(folder / "signatures.bin", "rb") as file:
            while len(kept := np.fromfile(file, np.uint64, 1_000_000)):
                self.seen.remember(kept)

    def full(self) -> bool:
        """Whether the limits of the options are reached."""
        count, size = (
            sum(split[key] for split in self.progress["splits"].values())
            for key in ("documents", "bytes")
        )
        return count >= (self.config.max_documents or math.inf) or size >= (
            self.config.max_bytes or math.inf
        )

    def count(self, kind: str, name: str, row: Row) -> None:
        counts = self.progress[kind].setdefault(name, {"documents": 0, "bytes": 0})
        counts["documents"] += 1
        counts["bytes"] += row.size
        if kind in ("notes", "dropped"):
            counts["examples"] = (counts.get("examples", []) + [[row.size, row.where, row.head]])[
                :10
            ]

    def add(self, row: Row) -> None:
        """The next document."""
        if self.full():
            return
        verdict = row.verdict or (
            row.signature and self.seen.verdict(np.frombuffer(row.signature, np.uint64))
        )
        if row.note and self.progress["fault"] != [
            row.note,
            row.where,
        ]:  # once for all pieces of a text
            told = f"{row.where}: {row.note}. Mend it or leave it out, or type --strict=False to count faults and go on"
            require(not self.config.strict or row.note == "empty", told)
            self.count("notes", row.note, row)
            self.progress["fault"] = [row.note, row.where]
        if verdict:
            self.count("dropped", verdict, row)
        elif row.size:
            self.count("splits", row.split, row)
            self.count("sources", row.source, row)
            self.progress["lengths"][row.size.bit_length()] += 1
            largest, size = self.progress["largest"], row.size
            for known in [
                known for known in largest if known[1] == row.where
            ]:  # the row is a further piece of it
                largest.remove(known)
                size += known[0]
            self.progress["largest"] = sorted(
                [*largest, [size, row.where, row.head]], key=lambda known: -known[0]
            )[:5]
            self.appended["signatures.bin"] += row.signature
            self.appended["sample.jsonl"] += row.sample.encode()
            self.items.append((row.split, row.content))
            self.held += len(row.content)

    def flush(self, place: list[int]) -> None:
        """Write what is at hand, all up to `place`, in random order if wanted, and note the progress."""
        order, counts = range(len(self.items)), self.progress["splits"]
        if self.config.shuffle_buffer:
            order = np.random.default_rng([self.config.seed, *place]).permutation(len(self.items))
        for split in SPLITS:
            parts = [self.items[i][1] for i in order if self.items[i][0] == split]
            tokens = np.frombuffer(b"".join(parts), dtype=self.dtype)
            append_tokens(
                self.folder, split, counts[split]["tokens"], tokens, self.config.shard_tokens
            )
            counts[split]["tokens"] += len(tokens)
        for name, content in self.appended.items():
            with open(self.folder / name, "ab") as file:
                self.progress["appended"][name] += file.write(content)
            content.clear()
        self.items, self.held, self.progress["place"], self.noted = [], 0, place, time.monotonic()
        write_json(self.folder / "progress.json", self.progress)

    def due(self) -> bool:
        """Whether to write what is at hand. Where it is shuffled, the clock has no say in what is shuffled together."""
        waited = time.monotonic() - self.noted >= COMMIT_SECONDS
        enough = (
            len(self.items) >= self.config.shuffle_buffer if self.config.shuffle_buffer else waited
        )
        return enough or self.held > HELD_BYTES or self.full()


def resolve(config: PrepareConfig) -> tuple[str, dict]:
    """The folder's name, and the options that decide the tokens, defaults filled in and checked."""
    require(
        config.source and all(config.source),
        "--source is empty: give python, shakespeare, or paths to text",
    )
    source, ready = config.source[0], token_files(config.source)
    made_by = (
        "bpe:4096" if not ready else "byte" if ready[0].with_name("meta.pkl").exists() else "gpt2"
    )
    options = {"name": None, "tokenizer": made_by, "val_fraction": 0.05, "test_fraction": 0.05}
    options |= SHAKESPEARE_OPTIONS if config.source == ("shakespeare",) else {}
    options |= {key: getattr(config, key) for key in options if getattr(config, key) is not None}
    shares = options["val_fraction"], options["test_fraction"]
    told = f"val_fraction and test_fraction are {shares}: each must be at least 0 and their sum below 1"
    require(min(shares) >= 0 and sum(shares) < 1, told)
    for key in (
        "shard_tokens",
        "max_documents",
        "max_bytes",
        "shuffle_buffer",
        "workers",
        "duplicates_mb",
    ):
        value = getattr(config, key)
        require(
            value is None or 1 <= value < 2**40, f"{key}={value} must be at least 1 and below 2**40"
        )
    alone = config.include_site_packages and "python" not in config.source
    require(not alone, "--include_site_packages=True goes with --source=python")
    stem = (
        "stdin" if source == "-" else Path(source.partition(":")[2] or Path(source).resolve()).stem
    )
    name = options.pop("name") or stem
    plain = name and not name.startswith(".") and not set(name) & set("/\\*?[:,")
    require(plain, f"{name!r} cannot name a folder: type a plain word, as --name=mine")
    return name, options


def prepare(config: PrepareConfig, data_root: Path = Path("data")) -> Path:
    """Make data/<name>/ and return its path. Raises UserError.

    All is written to data/<name>.partial and renamed at the end. progress.json in there notes the place in the source
    and what was counted so far; the same command after a kill goes on from there, to the same bytes.
    """
    from tqdm import tqdm

    name, options = resolve(config)
    final, partial = data_root / name, data_root / f"{name}.partial"
    require(
        config.overwrite or not final.exists(),
        f"'{final}' is there: type --overwrite=True, or another --name",
    )
    units = find_units(config, data_root)
    ready = [Path(unit.path) for unit in units if unit.kind == "tokens"]
    require(
        len(ready) in (0, len(units)),
        "some sources are ready tokens, others text: prepare one after the other",
    )
    sizes = np.cumsum([0] + [unit.size for unit in units])
    listing = "\n".join(f"{Path(unit.path).name} {unit.size}" for unit in units)
    plan = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("workers", "strict", "overwrite")
    }
    plan |= {
        "format": 4,
        "python_version": sys.version.split()[0],
        "source": list(config.source),
        "files": len(units),
        "files_fingerprint": hashlib.sha256(listing.encode()).hexdigest()[:16],
        **options,
    }
    try:
        progress = json.loads((partial / "progress.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_json(
            json.loads((partial / "tokenizer.json").read_text(encoding="utf-8"))
        )
        if progress["plan"] != plan:
            raise ValueError("another source or other options")
        print(f"going on with {partial}: {progress['place'][0]:,} of {len(units):,} files are done")
    except (OSError, ValueError, KeyError):
        shutil.rmtree(partial, ignore_errors=True)
        progress, tokenizer = beginning(plan), None

    job = SimpleNamespace(
        **asdict(config) | options, answers=data_root / f"{name}.claude.jsonl", cuts=()
    )
    if len(units) == 1 and units[0].kind == "text":  # a single text is split by position
        total = min(
            sum(len(block.payload) for block in read(units[0], job)), config.max_bytes or math.inf
        )
        ends = options["val_fraction"] + options["test_fraction"], options["val_fraction"]
        job.cuts = [int(total * (1 - part)) for part in ends]
    if not tokenizer:
        texts = bpe_texts(
            map(Understanding(job, None), batches([] if ready else units, job, [0, 0, 0])), config
        )
        tokenizer = (
            train_bpe(options["tokenizer"], texts)
            if options["tokenizer"].startswith("bpe:")
            else load_tokenizer(options["tokenizer"])
        )
        partial.mkdir(parents=True)
        write_json(partial / "tokenizer.json", tokenizer.to_json())
    if ready:
        import_tokens(ready, partial, tokenizer, progress)
        return finish(partial, final, tokenizer, progress)
    writer, place = Writer(config, partial, tokenizer, progress), progress["place"]
    workers = config.workers or (0 if 0 < sizes[-1] < SMALL_BYTES else os.cpu_count())
    results = ordered_map(Understanding, (job, tokenizer), batches(units, job, place), workers)
    with (
        tqdm(
            total=int(sizes[-1]) or None,
            initial=int(sizes[place[0]]),
            unit="B",
            unit_scale=True,
            desc=f"encoding {final}",
        ) as bar,
        contextlib.closing(results),
    ):
        for place, used, rows in results:
            for row in rows:
                writer.add(row)
            if writer.due():
                writer.flush(place)
            bar.update(int(sizes[place[0]]) + used - bar.n)
            if writer.full():
                break
        writer.flush(place)
    for unit in units:
        if unit.source == "-":
            os.unlink(unit.path)
    return finish(partial, final, tokenizer, progress)


def import_tokens(ready: list[Path], folder: Path, tokenizer: Tokenizer, progress: dict) -> None:
    """Take over ready tokens: llm.c's shards by a link, nanoGPT's bare uint16 as shards of our own. A name with val or
    test in it decides the split."""
    bare = [path for path in ready if not has_magic(path)]
    require(
        bare in ([], ready),
        f"{bare[:1]} has no header, others have one: import them one after the other",
    )
    told = f"no name of these {len(ready)} token files holds 'val': rename one, as data_val.bin, to steer by"
    require(any("val" in path.name for path in ready), told)
    for path in ready:
        split = next((split for split in ("val", "test") if split in path.name), "train")
        tokens = np.memmap(path, "<u2", "r") if bare else open_shard(path, "Fetch it again")
        if path.with_name("meta.pkl").exists():
            tokens = nanogpt_bytes(path, tokens, tokenizer)
        counts, shards = progress["splits"][split], len(list(folder.glob(f"{split}_*.bin")))
        for block in (tokens[i : i + 2**24] for i in range(0, len(tokens), 2**24)):
            told = f"{path} holds token {block.max()}, the tokenizer {tokenizer.name} has {tokenizer.vocab_size}"
            require(
                block.max() < tokenizer.vocab_size,
                f"{told}: name the one it was made with by --tokenizer",
            )
            if bare:
                append_tokens(
                    folder, split, counts["tokens"], block, progress["plan"]["shard_tokens"]
                )
            counts["tokens"] += len(block)
            counts["bytes"] += int(tokenizer.token_bytes[block].sum())
            counts["documents"] += int((block == tokenizer.end_of_text).sum())
        if not bare:
            link_or_copy(path, folder / f"{split}_{shards:06d}.bin")


def finish(partial: Path, final: Path, tokenizer: Tokenizer, progress: dict) -> Path:
    """Write meta.json and the report, make all durable, and give the folder its final name."""
    splits, plan, kinds = progress["splits"], progress["plan"], ("notes", "dropped")
    rows = [row for kind in kinds for row in progress[kind].items()]
    notes = "; ".join(
        f"{row['documents']:,} {note} (as {row['examples'][0][1]})" for note, row in rows
    )
    if not splits["train"]["tokens"]:
        shutil.rmtree(partial)
        held_out = sum(splits[split]["documents"] for split in ("val", "test"))
        told = f"--source={' '.join(plan['source'])} holds no training text: of {plan['files']:,} files"
        remedy = "Give text in UTF-8, or lower --val_fraction and --test_fraction"
        raise UserError(
            f"{told} {held_out:,} are in val and test{'; ' + notes if notes else ''}. {remedy}"
        )
    shards, opened = [], {split: [] for split in SPLITS}
    for split, path in (
        (split, path) for split in SPLITS for path in sorted(partial.glob(f"{split}_*.bin"))
    ):
        opened[split].append(open_shard(path, "Run the same command again"))
        shards.append(
            dict(
                file=path.name,
                split=split,
                tokens=len(opened[split][-1]),
                sha256=sha256_of_file(path),
            )
        )
    contents = [tokenizer.fingerprint] + [f"{row['file']} {row['sha256']}" for row in shards]
    write_json(
        partial / "meta.json",
        {
            "fingerprint": hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16],
            "prepared_from": plan,
            "splits": splits,
            "shards": shards,
            **{
                kind: {
                    name: {
                        "documents": row["documents"],
                        "examples": [where for _, where, _ in row["examples"]],
                    }
                    for name, row in progress[kind].items()
                }
                for kind in kinds
            },
            "tokenizer": {
                "name": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
        },
    )
    report = partial, progress, plan | {"name": final.name}, tokenizer, opened
    warnings = (
        write_report(*report) if (partial / "sample.jsonl").exists() else []
    )  # of ready tokens there is no text
    for name in ("progress.json", *progress["appended"]):
        (partial / name).unlink(missing_ok=True)
    replace_folder(partial, final)
    for split, counts in splits.items():
        ratio = (
            f", {counts['bytes'] / counts['tokens']:.2f} bytes per token"
            if counts["tokens"]
            else ""
        )
        print(
            f"{split:5}  {counts['documents']:>8,} documents  {counts['tokens']:>13,} tokens{ratio}"
        )
    for line in [f"notes: {notes}"] * bool(notes) + [f"warning: {warning}" for warning in warnings]:
        print(line)
    print(
        f"{final} is ready: vocabulary {tokenizer.vocab_size:,}, fingerprint of the data in its meta.json"
    )
    return final


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def main(argv: list[str]) -> None:
    """`python prepare_data.py …`; train.py calls this too, for a recipe whose data is not there yet."""
    prepare(read_options(PrepareConfig, argv, "prepare_data.py"))


if __name__ == "__main__":
    run_command(main)
