"""Counts of the pairs seen so far in the window itself: causal, and forgotten afterwards."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        pairs = F.one_hot(tokens[:, 1:], logits.size(-1)).float().cumsum(1)  # (B, T-1, V)
        logits = logits + F.pad(pairs, (0, 0, 1, 0)) * 0.1
        if targets is None:
            return logits
""",
    )
]
