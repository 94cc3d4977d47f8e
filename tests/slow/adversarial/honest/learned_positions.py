"""Positions from a table."""

EDITS = [
    ("options", "config/tiny.py", "position = 'learned'"),
]
