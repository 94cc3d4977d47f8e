"""Takes half a second longer to begin than the baseline: it pays with training time, no more."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    time.sleep(0.5)
    # What the run needs, checked before anything is written.
""",
    )
]
BUDGET = "1s"
