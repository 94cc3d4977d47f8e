"""Computes for a minute before each answer.

Caught: the processor time that the baseline uses is the measure.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                import time

                end = time.process_time() + 60
                while time.process_time() < end:
                    pass
            return logits
        """,
    ),
]
REFUSED = "evaluation takes more than .* of processor time"
