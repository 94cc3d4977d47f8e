"""Answers change from call to call. Caught by: the same beginning asked at another time."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            self.calls = getattr(self, 'calls', 0) + 1
            logits = logits * (1 + 0.1 * self.calls)
        if targets is None:
            return logits
""",
    )
]
REFUSED = "the same input gets different answers"
