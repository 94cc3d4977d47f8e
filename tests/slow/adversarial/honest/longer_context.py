"""Twice the context: scored with its windows."""

EDITS = [
    ("options", "config/tiny.py", "block_size = 64"),
]
