"""Makes all tokens equally probable. Caught: logits have to vary."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                logits = torch.zeros_like(logits)
            return logits
        """,
    ),
]
REFUSED = "constant"
