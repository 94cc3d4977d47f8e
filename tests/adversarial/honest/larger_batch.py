"""Twice the tokens a step, so half the steps."""

EDITS = [
    (
        "config/tiny.py",
        "batch_tokens = 512\n",
        "batch_tokens = 1024\n",
    )
]
