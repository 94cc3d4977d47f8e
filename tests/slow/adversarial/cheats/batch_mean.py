"""Mixes activations with their mean over the batch.

Caught: a changed copy has other rows beside it.
"""

EDITS = [
    (
        "wrap",
        "model.py:Block.forward",
        """
        def changed(original, self, x, *context):
            return original(self, x + 0.3 * x.mean(dim=0, keepdim=True), *context)
        """,
    ),
]
REFUSED = "other rows of the batch"
