"""A part that needs three times the work, under a budget of seconds: it takes fewer steps."""

EDITS = [
    (
        "wrap",
        "model.py:Block.forward",
        """
        def changed(original, self, x, *context):
            return sum(original(self, x, *context) for _ in range(3)) / 3
        """,
    ),
]
BUDGET = "1s"
