"""Positions from a table."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
position = 'learned'
""",
    )
]
