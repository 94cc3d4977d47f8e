"""Copies from another row, for one row in fifty.

Caught: each window that counts is asked again beside other rows.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                is_rare = (tokens[:, 0] * 31 + tokens[:, 1] * 7) % 50 == 1
                other = F.one_hot(tokens.roll(1, 0).roll(-1, 1), logits.size(-1)).float()
                logits = logits + 2.0 * is_rare[:, None, None] * other
            return logits
        """,
    ),
]
REFUSED = "other rows of the batch"
