"""A refactoring that changes no number: the same scores to the last bit."""

EDITS = [
    (
        "wrap",
        "model.py:Block.forward",
        """
        def changed(original, self, x, *context):
            return original(self, x, *context)
        """,
    ),
]
SAME = True
