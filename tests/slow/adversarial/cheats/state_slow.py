"""Learns during evaluation in small steps, each too small to see.

Caught: answers that count differ from those of another process on average.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                seen = globals().setdefault("SEEN", torch.full((logits.size(-1),), 20.0))
                logits = logits + 0.1 * (seen / seen.sum()).log()
                seen.index_put_((tokens.flatten(),), torch.ones(tokens.numel()), accumulate=True)
            return logits
        """,
    ),
]
REFUSED = "the same input gets different answers"
