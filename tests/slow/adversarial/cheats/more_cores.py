"""Takes all cores of the machine. Gains nothing: the kernel refuses."""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import os

        try:
            os.sched_setaffinity(0, range(os.cpu_count()))
        except OSError:
            pass
        if len(os.sched_getaffinity(0)) > 1:
            raise SystemExit(99)
        """,
    ),
]
GAINS_NOTHING = 1e-9
