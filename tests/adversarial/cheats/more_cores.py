"""Takes all cores of the machine instead of its own. Worth nothing: the kernel refuses."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    import os

    try:
        os.sched_setaffinity(0, range(os.cpu_count()))
    except OSError:
        pass
    if len(os.sched_getaffinity(0)) > 1:
        raise SystemExit(99)
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
