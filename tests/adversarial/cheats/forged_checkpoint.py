"""A checkpoint that runs a program when it is read. Caught by: checkpoints are read as plain values."""

EDITS = [
    (
        "train.py",
        "        replace_file(path, lambda file: torch.save(checkpoint, file), keep_old)",
        """\
        evil = type('Evil', (), {'__reduce__': lambda self: (print, ('I was run',))})
        checkpoint |= {'evil': evil()}
        replace_file(path, lambda file: torch.save(checkpoint, file), keep_old)""",
    )
]
REFUSED = "before it had answered"
