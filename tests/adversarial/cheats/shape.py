"""Answers for half of the positions. Caught by: the shape."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            logits = logits[:, ::2]
        if targets is None:
            return logits
""",
    )
]
REFUSED = "shape"
