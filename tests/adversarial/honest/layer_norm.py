"""LayerNorm with bias."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
norm = 'layer'
bias = True
""",
    )
]
