"""Fewer key and value heads."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
n_kv_head = 1
""",
    )
]
