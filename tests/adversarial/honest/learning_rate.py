"""Another learning rate."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
muon_lr = 0.04
""",
    )
]
