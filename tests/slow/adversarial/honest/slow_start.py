"""Needs half a second longer to start than the baseline: it pays with training time."""

EDITS = [
    ("begin", "train.py:train", "time.sleep(0.5)"),
]
BUDGET = "1s"
