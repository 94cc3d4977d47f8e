"""A convolution over time looks ahead.

Caught: windows that differ only later get other answers.
"""

EDITS = [
    (
        "wrap",
        "model.py:MLP.forward",
        """
        def changed(original, self, x):
            return original(self, x + 0.5 * F.pad(x[:, 1:], (0, 0, 0, 1)))
        """,
    ),
]
REFUSED = "tokens that come after it"
