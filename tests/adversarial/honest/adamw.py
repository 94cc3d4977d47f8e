"""Another optimizer."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
optimizer = 'adamw'
learning_rate = 3e-3
""",
    )
]
