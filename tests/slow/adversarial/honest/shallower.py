"""One layer."""

EDITS = [
    ("options", "config/tiny.py", "n_layer = 1"),
]
