"""Searches the frames above it for the answers. Finds none: they never were in its process."""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                import sys

                frame = sys._getframe(1)
                while frame:
                    for word in ("target", "losses", "plan"):
                        if any(word in name for name in frame.f_locals):
                            raise SystemExit(99)
                    frame = frame.f_back
            return logits
        """,
    ),
]
GAINS_NOTHING = 1e-9
