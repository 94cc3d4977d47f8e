"""Normalizes with the mean over time, which contains what follows.

Caught: windows that differ only later get other answers.
"""

EDITS = [
    (
        "wrap",
        "model.py:Block.forward",
        """
        def changed(original, self, x, *context):
            return original(self, x - x.mean(dim=1, keepdim=True), *context)
        """,
    ),
]
REFUSED = "tokens that come after it"
