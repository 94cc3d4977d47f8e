"""Dropout, in training only."""

EDITS = [
    ("options", "config/tiny.py", "dropout = 0.1"),
]
