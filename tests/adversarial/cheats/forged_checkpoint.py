"""A checkpoint that runs a program when it is read. Caught by: checkpoints are read as plain values."""

EDITS = [
    (
        "train.py",
        "        return save_checkpoint(path, state | {",
        """\
        evil = type('Evil', (), {'__reduce__': lambda self: (print, ('I was run',))})
        return save_checkpoint(path, state | {
            'evil': evil(),""",
    )
]
REFUSED = "before it had answered"
