"""Takes all memory to write to, locks the data, and leaves busy processes for the baseline's run.

Gains nothing: memory, locks and processes end with a run. The suite does the baseline once more.
"""

EDITS = [
    (
        "wrap",
        "train.py:train",
        """
        def changed(original, config, *rest):
            import fcntl
            import os

            summary = original(config, *rest)
            for path in Path(config.data).iterdir():
                fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
            for number in range(4):
                if os.fork() == 0:
                    os.setsid()
                    while True:
                        pass
            Path("/dev/shm/full").write_bytes(bytes(60 << 20))
            Path("/tmp/full").write_bytes(bytes(200 << 20))
            return summary
        """,
    ),
]
GAINS_NOTHING = 1e-9
