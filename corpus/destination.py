"""Where a preparation writes, and how that replaces an older data folder.

    data/.NAME.partial     half made; a killed preparation resumes there
    data/.NAME.replaced    the older folder, until it is removed
    data/.NAME.lock        held by the one process that prepares NAME

Only what a preparation has written is replaced or removed, whatever its folder is called.
"""

import json
import os
import re
from collections import namedtuple
from pathlib import Path

from nanoloop.data import SPLITS
from nanoloop.files import remove
from nanoloop.options import reading, require
from nanoloop.tokenizer import load_tokenizer

# What preparations keep beside a data folder: the above, standard input, and Claude's answers.
BESIDE = re.compile(r"\..+\.(lock|partial|replaced|stdin)|.+\.claude\.jsonl")
# What a preparation writes into a folder, its shards, and what is there until it is complete.
WRITTEN = ("meta.json", "tokenizer.json", "report.json", "report.html", ".checked.json")
SHARD = re.compile(r"(train|val|test)_\d{6,}\.bin")
WORKING = ("progress.json", "signatures.bin", "sample.jsonl")

# How far a preparation is: units that are done, blocks of the next one, bytes in all.
Cursor = namedtuple("Cursor", "unit blocks n_bytes")


class Progress:
    """What a killed preparation resumes from, and what the report counts.

    All are plain values. plan: source and options. cursor: how far it is. splits, sources, notes,
    dropped: counts by name. lengths: documents by the bits of their size. largest: [size, where,
    head] of the largest documents. fault: the last [note, where]. appended: bytes of the files to
    which signatures and the sample are appended.
    """

    def __init__(self, plan: dict):
        self.plan = plan
        self.cursor = Cursor(0, 0, 0)
        self.splits = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        self.sources = {}
        self.notes = {}
        self.dropped = {}
        self.lengths = [0] * 32
        self.largest = []
        self.fault = None
        self.appended = {"signatures.bin": 0, "sample.jsonl": 0}

    def kept(self) -> dict:
        """Return how many documents, and bytes of text, are in all splits together."""
        rows = self.splits.values()
        return {key: sum(row[key] for row in rows) for key in ("documents", "bytes")}


def count(table: dict, name: str, size: int) -> dict:
    """Count a document of `size` bytes under a name of the table; return what is counted there."""
    counts = table.setdefault(name, {"documents": 0, "bytes": 0})
    counts["documents"] += 1
    counts["bytes"] += size
    return counts


def hidden(final: Path, purpose: str) -> Path:
    """Return the name beside a data folder that a preparation uses for a purpose."""
    return final.with_name(f".{final.name}.{purpose}")


def require_written(folder: Path, working=()) -> None:
    """Raise UserError if a preparation did not write all that is in the folder.

    Its shards are those that meta.json names; a half-made folder has none yet. working: names that
    may also be there.
    """
    hint = "move it away, or type another --name"
    meta = read_values(folder / "meta.json")
    with reading(f"'{folder}/meta.json' does not name the shards", hint):
        shards = [row["file"] for row in meta["shards"]] if meta else []
    known = {*WRITTEN, *working, *shards}
    for name in sorted(os.listdir(folder)):
        is_shard = not meta and SHARD.fullmatch(name)
        is_known = name.removesuffix(".tmp") in known  # a kill leaves it
        message = f"'{folder}' holds '{name}', which no preparation wrote: {hint}"
        require(is_shard or is_known, message)


def require_free(final: Path, overwrite: bool) -> None:
    """Raise UserError unless `final` is missing, empty, or data to overwrite."""
    is_empty = final.is_dir() and not os.listdir(final)
    if is_empty or not os.path.lexists(final):
        return
    is_prepared = "prepared_from" in read_values(final / "meta.json")
    require(is_prepared, f"'{final}' exists, and no preparation wrote it: type another --name")
    require_written(final)
    require(overwrite, f"'{final}' exists: type --overwrite=True, or another --name")


def restore(final: Path) -> None:
    """Put back the older folder if a preparation was killed between two renames.

    Killed a moment later, the older folder is removed.
    """
    replaced = hidden(final, "replaced")
    if not replaced.exists():
        return
    require_written(replaced)
    if os.path.lexists(final):
        remove(replaced)
    else:
        os.replace(replaced, final)


def resume(partial: Path, plan: dict, overwrite: bool) -> tuple:
    """Return the Progress and the tokenizer that a killed preparation has left.

    A new Progress and None if it has left nothing of this plan; the folder is empty then. What was
    done by another plan is only deleted to overwrite it. Raises UserError.
    """
    progress = Progress(plan)
    meta = read_values(partial / "meta.json")  # written last: nothing is missing
    values = read_values(partial / "progress.json")
    other = meta.get("prepared_from") or values.get("plan")
    if other == plan:
        vars(progress).update(values)
        progress.cursor = Cursor(*progress.cursor)
        n_done = plan["files"] if meta else progress.cursor.unit
        print(f"resuming {partial}: {n_done:,} of {plan['files']:,} files are done")
        return progress, load_tokenizer(str(partial))
    if other:
        changed = [key for key in other | plan if other.get(key) != plan.get(key)]
        message = f"'{partial}' is half made, with another {', '.join(changed)}"
        hint = "type those options again to resume, --overwrite=True to delete it, or another"
        require(overwrite, f"{message}: {hint} --name")
        print(f"{message}: deleting it")
    if partial.exists():
        require_written(partial, WORKING)
        if not other:
            print(f"{partial} holds nothing to resume from: starting anew")
    discard(partial)
    partial.mkdir(parents=True)
    return progress, None


def discard(partial: Path) -> None:
    """Remove a half-made folder. What says that it can be resumed goes first."""
    for name in ("meta.json", "progress.json"):
        (partial / name).unlink(missing_ok=True)
    remove(partial)


def publish(partial: Path, final: Path, overwrite: bool) -> None:
    """Rename the complete folder `partial` to `final`.

    Raises UserError if that is not free. A complete folder exists under `final` at any moment
    except between two renames.
    """
    require_free(final, overwrite)
    for name in WORKING:
        (partial / name).unlink(missing_ok=True)
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    replaced = hidden(final, "replaced")
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    remove(replaced)


def read_values(path: Path) -> dict:
    """Return the values of a file of JSON, {} if there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
