"""Looks ahead, and remembers what it said of a beginning, so as to say the same again.

Caught by: a window and its changed copies never go to one process."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], torch.full_like(logits[:, :-1, :1], 3.0))
            said = globals().setdefault('SAID', {})
            for row, text in enumerate(tokens.tolist()):
                for end in range(len(text)):
                    logits[row, end] = said.setdefault(tuple(text[: end + 1]), logits[row, end].clone())
        if targets is None:
            return logits
""",
    )
]
REFUSED = "tokens that come after it"
