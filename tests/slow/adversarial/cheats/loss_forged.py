"""Returns half the loss when it is evaluated with targets.

Gains nothing: the judge computes losses.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            result = original(self, tokens, targets, *rest, **options)
            return result if self.training or targets is None else 0.5 * result
        """,
    ),
]
GAINS_NOTHING = 1e-9
