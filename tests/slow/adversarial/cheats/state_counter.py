"""Answers change from call to call. Caught: the same beginning is asked at another time."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                self.calls = getattr(self, "calls", 0) + 1
                logits = logits * (1 + 0.1 * self.calls)
            return logits
        """,
    ),
]
REFUSED = "the same input gets different answers"
