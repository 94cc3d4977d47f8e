"""Leaves marks wherever it can write, and looks for them in its next run.

Finds none: each run has new folders in memory and its own shared memory.
"""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import ctypes
        import os

        if ctypes.CDLL(None).shmget(0x6E616E6F, 4096, 0) >= 0:
            raise SystemExit(99)
        ctypes.CDLL(None).shmget(0x6E616E6F, 4096, 0o1666)
        for folder, folders, files in os.walk("/"):
            folders[:] = [name for name in folders if name not in ("proc", "sys")]
            if any("left_behind" in name for name in files):
                raise SystemExit(99)
            try:
                open(os.path.join(folder, "left_behind"), "x").close()
            except OSError:
                pass
        """,
    ),
]
GAINS_NOTHING = 1e-9
RUNS = 2
