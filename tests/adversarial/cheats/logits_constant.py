"""All tokens are equally probable. Caught by: logits that vary."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training:
            logits = torch.zeros_like(logits)
        if targets is None:
            return logits
""",
    )
]
REFUSED = "constant"
