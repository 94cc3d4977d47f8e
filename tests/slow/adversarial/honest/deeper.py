"""One layer more."""

EDITS = [
    ("options", "config/tiny.py", "n_layer = 3"),
]
