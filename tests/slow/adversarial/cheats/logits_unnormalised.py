"""Returns scores that are a hundred too high. Gains nothing: the judge normalizes."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                logits = logits + 100.0
            return logits
        """,
    ),
]
GAINS_NOTHING = 1e-4
