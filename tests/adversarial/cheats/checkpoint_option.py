"""The recipe begins from weights. Caught by: options that are the judge's."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
init_from = 'out/longer_run'
""",
    )
]
REFUSED = "sets init_from"
