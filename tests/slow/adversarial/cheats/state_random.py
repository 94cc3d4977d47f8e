"""Adds random noise to every answer. Caught: the same question is asked twice."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                logits = logits + 0.5 * torch.randn_like(logits)
            return logits
        """,
    ),
]
REFUSED = "the same input gets different answers"
