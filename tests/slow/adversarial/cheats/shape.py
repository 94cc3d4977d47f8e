"""Answers for half of the positions. Caught: the shape is wrong."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                logits = logits[:, ::2]
            return logits
        """,
    ),
]
REFUSED = "shape"
