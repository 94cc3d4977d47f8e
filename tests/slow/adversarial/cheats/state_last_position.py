"""Learns during evaluation what follows the last position alone.

Caught: the answers for that position are compared too.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                seen = globals().setdefault("SEEN", torch.zeros(logits.size(-1)))
                logits[:, -1] += torch.log1p(seen)
                seen.index_put_((tokens[:, 0],), torch.ones(len(tokens)), accumulate=True)
            return logits
        """,
    ),
]
REFUSED = "the same input gets different answers"
