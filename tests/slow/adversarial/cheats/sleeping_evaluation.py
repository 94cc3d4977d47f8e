"""Waits before each answer instead of computing. Caught: the clock is the outer limit."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                import time

                time.sleep(60)
            return logits
        """,
    ),
]
REFUSED = "evaluation takes more than"
