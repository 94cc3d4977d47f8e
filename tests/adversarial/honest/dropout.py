"""Dropout, in training only."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
dropout = 0.1
""",
    )
]
