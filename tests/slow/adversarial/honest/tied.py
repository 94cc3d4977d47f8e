"""One table for input and output."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        tie_embeddings = True
        weight_init = 'gpt2'
        head_lr = 0.01
        """,
    ),
]
