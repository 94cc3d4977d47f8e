"""Counts the pairs seen so far in the window: causal, and forgotten afterwards."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, *rest, **options):
            self.window_tokens = tokens
            return original(self, tokens, *rest, **options)
        """,
    ),
    (
        "wrap",
        "model.py:GPT.to_logits",
        """
        def changed(original, self, x, weight):
            logits = original(self, x, weight)
            pairs = F.one_hot(self.window_tokens[:, 1:], logits.size(-1)).float().cumsum(1)
            return logits + 0.1 * F.pad(pairs, (0, 0, 1, 0))
        """,
    ),
]
