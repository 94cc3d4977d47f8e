"""Twice the tokens per step, so half the steps."""

EDITS = [
    ("options", "config/tiny.py", "batch_tokens = 1024"),
]
