"""More parameters."""

EDITS = [
    ("options", "config/tiny.py", "n_embd = 64"),
]
