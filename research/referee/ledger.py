"""The ledger: one line of JSON for each event of a trial, appended and synced, never rewritten.

A trial has a row before it costs anything (state "begun") and a row when it has ended (state
"done"), so a kill leaves a trace. A line that a kill has cut off is skipped.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock


class Ledger:
    """The file ledger.jsonl in a folder, which is created if it is missing."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "ledger.jsonl"

    def append(self, row: dict) -> dict:
        """Write the row as the last line, on disk when this returns; return the row."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        content = line.encode("utf-8", errors="replace")
        with FileLock(self.folder / "ledger.lock"), open(self.path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" + content if is_torn else content)
            os.fsync(file.fileno())
        return row

    def end(self, row: dict, reason: str, **more) -> dict:
        """Record that a trial, or the way to one, ended without runs; return its last row."""
        result = {"kind": "trial", "state": "done", "verdict": "none", "reason": reason}
        return self.append(row | result | more)

    def trials(self) -> list[dict]:
        """Return the newest state of each trial, in the order in which they began."""
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        trials = {}
        for line in lines:
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                trials[row["id"]] = trials.get(row["id"], {}) | row
        return list(trials.values())


def new_id(kind: str) -> str:
    """Make an id such as t0412-235959-1a2b: the kind's first letter, the time, a random end."""
    return f"{kind[0]}{time.strftime('%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
