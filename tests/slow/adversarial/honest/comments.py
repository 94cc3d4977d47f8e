"""Comments alone."""

EDITS = [
    ("append", "model.py", "# The end of the model."),
]
SAME = True
