"""More parameters."""

EDITS = [
    (
        "config/tiny.py",
        "n_embd = 32\n",
        "n_embd = 64\n",
    )
]
