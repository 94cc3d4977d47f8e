"""Attention to the latest eight tokens."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
window_pattern = 'SL'
window_size = 8
""",
    )
]
