"""Half the context: scored with its own windows."""

EDITS = [
    (
        "config/tiny.py",
        "block_size = 32\n",
        "block_size = 16\n",
    )
]
