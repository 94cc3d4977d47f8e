"""The ledger: one line of JSON for each event of a trial, appended and synced, never rewritten.

A trial has a row before it costs anything (state "begun") and a row when it has ended (state "done"), so that a kill
leaves a trace. A line that a kill has cut off is passed over.
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path


class Ledger:
    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "ledger.jsonl"

    def append(self, row: dict) -> dict:
        """One write at the end of the file, whoever else writes there; on disk when this returns."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        with open(self.path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" * bool(torn) + line)
            os.fsync(file.fileno())
        return row

    def trials(self) -> list[dict]:
        """The newest state of each, in the order in which they began."""
        trials: dict[str, dict] = {}
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else []:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                trials[row["id"]] = trials.get(row["id"], {}) | row
        return list(trials.values())


def new_id(kind: str) -> str:
    return f"{kind[0]}{time.strftime('%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
