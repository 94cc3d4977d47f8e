"""Another activation."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
activation = 'swiglu'
""",
    )
]
