"""Writes answers into every open pipe. Caught: one question has one answer."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                import os

                for pipe in range(3, 20):
                    try:
                        os.write(pipe, b"0" * 64)
                    except OSError:
                        pass
            return logits
        """,
    ),
]
REFUSED = "shape|before it had answered"
