"""Holds validation text in a comment. Caught: what it adds is compared with the held-out text."""

EDITS = [
    ("append", "model.py", "# HELD_OUT"),
]
REFUSED = "held-out text"
