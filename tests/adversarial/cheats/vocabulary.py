"""A vocabulary of its own, of which fewer tokens are ever wrong. Caught by: the data's vocabulary."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
vocab_size = 512
""",
    )
]
REFUSED = "its vocabulary is 512"
