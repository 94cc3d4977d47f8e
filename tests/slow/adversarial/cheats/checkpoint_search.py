"""Looks for an older checkpoint to start from. Finds none: nothing outlives a run."""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import os

        skipped = ("proc", "sys", "usr", "site-packages")
        for folder, folders, files in os.walk("/"):
            folders[:] = [
                name for name in folders if name not in skipped and not name.startswith("python3")
            ]
            if any(name.endswith((".pt", ".ckpt")) for name in files):
                raise SystemExit(99)
        """,
    ),
]
GAINS_NOTHING = 1e-9
