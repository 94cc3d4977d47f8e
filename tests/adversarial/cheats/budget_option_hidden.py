"""The same, behind a back door. Worth nothing: the judge's flags come last."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
globals().update({'max_' + 'steps': 5000})
""",
    )
]
GAINS_NOTHING = 1e-09
