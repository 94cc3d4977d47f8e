"""A file of JSON rows that only grows."""

import json
import os
from pathlib import Path

from nanoloop.options import reading as explained


class JsonLines:
    """A file of JSON rows, one a line, that only grows; a row is on the disk before `append` returns.

    take: called with every row that is there already and with every one appended. hide: a word that is blotted out of
    them, a key say. A last line that a kill has cut off is dropped. Raises UserError, and leaves the file as it is,
    where that holds anything else.
    """

    def __init__(self, path: Path, take, hide: str = "\n"):  # JSON has no line end inside
        self.take, self.hide, self.file = take, hide, open(path, "a+")
        self.file.seek(0)
        whole, end, _ = self.file.read().rpartition("\n")
        with explained(f"{path} holds something else than it should", "move it away to begin anew"):
            for line in whole.splitlines():
                take(json.loads(line))
        self.file.truncate(len(whole + end))  # json.dumps writes ASCII

    def append(self, row: dict) -> None:
        line = json.dumps(row).replace(self.hide, "[hidden]")
        print(line, file=self.file, flush=True)
        os.fsync(self.file.fileno())
        self.take(json.loads(line))
