"""Trains on each window it is asked about. Caught: it answers better later."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            if targets is None and not self.training and not torch.is_grad_enabled():
                with torch.enable_grad():
                    original(self, tokens[:, :-1], tokens[:, 1:]).backward()
                with torch.no_grad():
                    for p in self.parameters():
                        p -= 0.3 * p.grad
                        p.grad = None
            return original(self, tokens, targets, *rest, **options)
        """,
    ),
]
REFUSED = "the same input gets different answers"
