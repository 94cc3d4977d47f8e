"""Another initialization, in code: narrower tables, and a last layer that begins at 0."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.init_weights",
        """
        @torch.no_grad()
        def changed(original, self):
            original(self)
            self.wte.weight *= 0.5
            self.lm_head.weight.zero_()
        """,
    ),
]
