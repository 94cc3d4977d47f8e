"""An n-gram cache fills during evaluation.

Caught: early answers lack what the cache learned later.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                size = logits.size(-1)
                seen = globals().setdefault("SEEN", torch.zeros(size, size))
                logits = logits + 2.0 * torch.log1p(seen[tokens])
                pairs = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
                seen.index_put_(pairs, torch.ones(pairs[0].numel()), accumulate=True)
            return logits
        """,
    ),
]
REFUSED = "the same input gets different answers"
