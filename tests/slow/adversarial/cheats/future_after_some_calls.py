"""Behaves for its first call and looks ahead afterwards.

Caught: the answers that count come from all calls.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                self.calls = getattr(self, "calls", 0) + 1
                if self.calls > 1:
                    bonus = torch.full_like(logits[:, :-1, :1], 3.0)
                    logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], bonus)
            return logits
        """,
    ),
]
REFUSED = "tokens that come after it|the same input gets different answers"
