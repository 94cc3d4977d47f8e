"""One table for input and output."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
tie_embeddings = True
weight_init = 'gpt2'
head_lr = 0.01
""",
    )
]
