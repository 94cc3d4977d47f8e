"""Predicts with infinite confidence. Caught: logits have to be finite."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                is_first = logits > logits.amax(-1, keepdim=True) - 1e-3
                logits = logits.masked_fill(is_first, math.inf)
            return logits
        """,
    ),
]
REFUSED = "not finite"
