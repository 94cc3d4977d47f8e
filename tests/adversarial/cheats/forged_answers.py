"""Writes answers of its own into every open pipe. Caught by: there is one answer to a question."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            import os

            for pipe in range(3, 20):
                try:
                    os.write(pipe, b'0' * 64)
                except OSError:
                    pass
        if targets is None:
            return logits
""",
    )
]
REFUSED = "shape|before it had answered"
