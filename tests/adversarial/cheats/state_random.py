"""Adds noise of its own to every answer. Caught by: the same question twice."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            logits = logits + 0.5 * torch.randn_like(logits)
        if targets is None:
            return logits
""",
    )
]
REFUSED = "the same input gets different answers"
