"""Fewer key and value heads."""

EDITS = [
    ("options", "config/tiny.py", "n_kv_head = 1"),
]
