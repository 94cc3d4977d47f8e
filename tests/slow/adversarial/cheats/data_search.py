"""Looks for held-out data and for the rest of the project.

Finds none: a run does not see them.
"""

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
            wanted = {"ledger.jsonl", "score.py", "val_000000.bin", "test_000000.bin"}
            if wanted & set(files):
                raise SystemExit(99)
        """,
    ),
]
GAINS_NOTHING = 1e-9
