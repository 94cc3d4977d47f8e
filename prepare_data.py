"""Prepare text for training: the command.

    python prepare_data.py --source=python         # the standard library, a byte-pair tokenizer
    python prepare_data.py --source=my/texts --name=mine --tokenizer=bpe:8192
    python prepare_data.py my/texts more/texts     # paths without an option are the source
    python prepare_data.py --source=shakespeare    # nanoGPT's benchmark text (needs a network)

The result is a folder, data/<name>/, that describes itself:

    train_000000.bin …  val_000000.bin …  test_000000.bin …    shards of tokens in llm.c's format
    tokenizer.json      the exact bytes of every token, and how text is cut into tokens
    meta.json           where the text came from, counts, checksums, what was left out and why
    report.html         what the corpus is like, with warnings; report.json has the same figures

The main process finds the sources and reads them in order (corpus/sources.py, corpus/reading.py),
workers turn what it reads into tokens (corpus/documents.py, corpus/curation.py), and it writes them
in order (corpus/writer.py).
"""

import nanoloop.environment  # noqa: F401, says how to install what is missing

import contextlib
import hashlib
import os
import re
import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from corpus.bpe import train_bpe, training_texts
from corpus.claude import ClaudeConfig
from corpus.curation import CurationConfig
from corpus.destination import Cursor, hidden, publish, require_free, restore, resume
from corpus.documents import BatchReader
from corpus.reading import read, read_batches
from corpus.sources import SHAKESPEARE_OPTIONS, default_tokenizer, find_units, readable
from corpus.workers import ordered_map
from corpus.writer import Writer, describe, finish, import_tokens
from nanoloop.files import locked, write_json
from nanoloop.options import UserError, read_options, require, run_program
from nanoloop.tokenizer import load_tokenizer

# Of integer options: the smallest value, and the bits of the largest.
LIMITS = {
    "shard_tokens": (1, 31),  # the header has the count as an int32
    "max_documents": (1, 40),
    "max_bytes": (4, 40),  # the longest character
    "shuffle_buffer": (1, 40),
    "seed": (0, 63),
    "workers": (1, 10),
    "duplicates_mb": (1, 30),
}
SMALL_BYTES = 4_000_000  # a smaller source is not worth the start of workers


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CurationConfig, ClaudeConfig):
    """Text to data/<name>/: token shards, a tokenizer, meta.json and a report."""

    # python, shakespeare, hf:NAME, synthetic:TASKS, claude:PROMPTS.jsonl, - (stdin), or paths
    source: tuple[str, ...]
    name: str | None = None  # the folder below data/; None: from the source
    # byte, bpe:N, an encoding of tiktoken, or a folder that has one; None: bpe:4096
    tokenizer: str | None = None
    text_key: str | None = None  # the JSON field or the column that holds the text; None: text
    hf_config: str | None = None  # of a Hugging Face data set, such as sample-10BT
    # of a Hugging Face data set; None: train, with its official validation and test
    hf_split: str | None = None
    max_documents: int | None = None  # at most so many documents, in all splits together
    max_bytes: int | None = None  # at most so many bytes of text: the last document is cut
    val_fraction: float | None = None  # share of the text for validation; None: 0.05
    test_fraction: float | None = None  # share of the text for the final test; None: 0.05
    # write at least so many documents at a time in random order; None: in the order of the source
    shuffle_buffer: int | None = None
    seed: int = 0  # of that order, and of synthetic text
    # with --source=python: the source of installed packages too, hundreds of MB
    include_site_packages: bool = False
    strict: bool = False  # stop at the first fault in the input; False: count faults
    # processes; None: one for each core, none for a small source. The result is the same
    workers: int | None = None
    shard_tokens: int = 100_000_000  # tokens per shard file
    overwrite: bool = False  # replace data/<name> if it exists

    NEEDS = {
        "source=*hf:*": "hf_config hf_split",
        "source=*claude:*": " ".join(ClaudeConfig.__annotations__),
        "duplicates": "duplicates_mb",
    }


def main(argv: list[str]) -> None:
    prepare(read_options(PrepareConfig, with_source(argv), "prepare_data.py", config_files=False))


def with_source(argv):
    """Return the words, with --source before the first one that belongs to no option.

    Raises UserError if --source stands elsewhere.
    """
    switches = [field.name for field in fields(PrepareConfig) if field.default is False]
    is_source = False
    takes_value = False
    for index, word in enumerate(argv):
        if word.startswith("--") or word == "-h":
            name, has_value, _ = word[2:].replace("-", "_").partition("=")
            is_source = name == "source"
            takes_value = not has_value and name not in switches
        elif is_source or takes_value:
            takes_value = False
        else:
            is_elsewhere = any(other.startswith("--source") for other in argv)
            hint = "give all paths to one --source, --source=A B"
            require(not is_elsewhere, f"'{word}' belongs to no option: {hint}")
            return with_source([*argv[:index], "--source", *argv[index:]])
    return argv


def prepare(config: PrepareConfig, data_root: Path = Path("data")) -> Path:
    """Prepare data/<name>/ and return its path. Raises UserError.

    Everything is written to a hidden folder beside it, which is renamed at the end. After a kill,
    the same command resumes there, to the same bytes. A link leads to the folder that it names.
    """
    config = resolve(config)
    final = data_root / config.name
    if final.is_symlink():
        final = Path(os.path.realpath(final))
    lock = hidden(final, "lock")
    is_lock = not lock.exists() or lock.stat().st_size == 0
    require(is_lock, f"'{lock}' is no lock of a preparation: move it away, or type another --name")
    message = f"'{final}' is being prepared by another process: wait for its end, or type another"
    with locked(lock, f"{message} --name"):
        restore(final)
        require_free(final, config.overwrite)
        units = find_units(config, data_root)
        try:
            fill(units, config, final)
        finally:
            for unit in units:
                if unit.source == "-":
                    os.unlink(unit.path)
        publish(hidden(final, "partial"), final, config.overwrite)
    describe(final)
    return final


def fill(units, config, final):
    """Complete the half-made folder of `final` from the units. Raises UserError."""
    config = replace(config, tokenizer=config.tokenizer or default_tokenizer(units))
    # Official val and test come first: a limit may end the reading, and the first copy stays.
    units = sorted(units, key=lambda unit: unit.split is None)
    split_single_text(units, config)
    ready = [unit.path for unit in readable(units) if unit.kind == "tokens"]
    texts = [unit for unit in readable(units) if unit.kind != "tokens"]
    if ready and texts:
        raise UserError(
            "some sources are ready tokens, others are text: prepare them separately. "
            f"{ready[0]} holds tokens, {texts[0].path} does not. "
            f"Type --source='{Path(ready[0]).parent}/*.bin' for the tokens"
        )
    folder = hidden(final, "partial")
    progress, tokenizer = resume(folder, make_plan(config, units), config.overwrite)
    if (folder / "meta.json").exists():
        return
    if tokenizer is None:
        tokenizer = make_tokenizer(config, texts)
        write_json(folder / "tokenizer.json", tokenizer.to_json())
    if ready:
        import_tokens(units, folder, tokenizer, progress, config.strict)
    else:
        official = set().union(*(unit.official for unit in texts))
        writer = Writer(config, folder, tokenizer, progress, official)
        encode(units, writer, f"encoding {final}")
    finish(folder, tokenizer, progress)


def resolve(config: PrepareConfig) -> PrepareConfig:
    """Return the options with their defaults, the folder's name too. Raises UserError."""
    require(
        config.source and all(config.source),
        "--source is empty: give python, shakespeare, or paths to text",
    )
    first = config.source[0]
    stem = Path(first.partition(":")[2] or Path(first).resolve()).stem
    name = "stdin" if first == "-" else stem
    defaults = {"name": name, "val_fraction": 0.05, "test_fraction": 0.05}
    if config.source == ("shakespeare",):
        defaults |= SHAKESPEARE_OPTIONS
    defaults = {key: value for key, value in defaults.items() if getattr(config, key) is None}
    config = replace(config, **defaults)
    is_plain = re.fullmatch(r"(?!\.)[^/\\*?[:,]+", config.name)
    hint = "type a plain word, such as --name=mine"
    require(is_plain, f"{config.name!r} cannot name a folder: {hint}")
    shares = (config.val_fraction, config.test_fraction)
    message = f"val_fraction and test_fraction must be at least 0 with a sum below 1, got {shares}"
    require(min(shares) >= 0 and sum(shares) < 1, message)
    for key, (first, bits) in LIMITS.items():
        value = getattr(config, key)
        is_valid = value is None or first <= value < 2**bits
        require(is_valid, f"{key} must be at least {first} and below 2**{bits}, got {value}")
    is_python = "python" in config.source or not config.include_site_packages
    require(is_python, "--include_site_packages=True needs --source=python")
    return config


def split_single_text(units, config):
    """Split a single text by position: set the ends of train and of test, in bytes."""
    units = readable(units)
    if [unit.kind for unit in units] != ["text"]:
        return
    (unit,) = units
    total = sum(len(block.payload) for block in read(unit, config))
    total = min(total, config.max_bytes or total)
    held_out = config.val_fraction + config.test_fraction
    unit.cuts = (int(total * (1 - held_out)), int(total * (1 - config.val_fraction)))


def make_plan(config, units):
    """Return all that decides the tokens, for meta.json."""
    plan = asdict(config)
    for key in ("workers", "strict", "overwrite"):
        del plan[key]
    rows = [f"{Path(unit.path).name} {unit.size}" for unit in units]
    listing = os.fsencode("\n".join(rows))  # a name can be no valid UTF-8
    return plan | {
        "format": 5,
        "python_version": sys.version.split()[0],
        "source": list(config.source),
        "files": len(units),
        "files_fingerprint": hashlib.sha256(listing).hexdigest()[:16],
    }


def make_tokenizer(config, units):
    """Train a tokenizer on the units, or load an existing one."""
    if not config.tokenizer.startswith("bpe:"):
        return load_tokenizer(config.tokenizer)
    reader = BatchReader(config, tokenizer=None)
    batches = read_batches(units, config, Cursor(0, 0, 0))
    rows = (row for batch in batches for row in reader(batch)[1])
    return train_bpe(config.tokenizer, training_texts(rows, config))


def encode(units, writer, title):
    """Read the units, encode them in several processes, and write them in order."""
    from tqdm import tqdm

    ends = [0, *accumulate(unit.size for unit in units)]
    config = writer.config
    cursor = writer.progress.cursor
    is_small = 0 < ends[-1] < SMALL_BYTES
    workers = config.workers or (0 if is_small else os.cpu_count())
    batches = read_batches(units, config, cursor)
    results = ordered_map(partial(BatchReader, config, writer.tokenizer), batches, workers)
    bar = tqdm(
        total=ends[-1] or None, initial=ends[cursor.unit], unit="B", unit_scale=True, desc=title
    )
    with bar, contextlib.closing(results):
        for cursor, rows in results:
            for row in rows:
                writer.add(row)
            if writer.is_due():
                writer.commit(cursor)
            bar.set_postfix_str(f"{cursor.n_bytes:,} bytes of text")
            bar.update(ends[cursor.unit] - bar.n)  # the files that are done
            if writer.is_full():
                break
        writer.commit(cursor)


if __name__ == "__main__":
    run_program(main)
