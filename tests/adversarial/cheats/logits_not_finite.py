"""Predicts with infinite confidence what it knows. Caught by: finite values."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training:
            logits = logits.masked_fill(logits > logits.amax(-1, keepdim=True) - 1e-3, math.inf)
        if targets is None:
            return logits
""",
    )
]
REFUSED = "not finite"
