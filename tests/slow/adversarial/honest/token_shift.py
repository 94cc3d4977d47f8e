"""A convolution over time that looks back: each token sees a part of the one before it."""

EDITS = [
    (
        "wrap",
        "model.py:MLP.forward",
        """
        def changed(original, self, x):
            return original(self, x + 0.5 * F.pad(x[:, :-1], (0, 0, 1, 0)))
        """,
    ),
]
