"""Copies from another row, at the last position alone.

Caught: the answers for that position are compared too.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                logits[:, -1] += 0.5 * F.one_hot(tokens.roll(1, 0)[:, 0], logits.size(-1)).float()
            return logits
        """,
    ),
]
REFUSED = "other rows of the batch"
