"""Never finds that it is done. Caught: its processor time is limited from outside."""

EDITS = [
    (
        "wrap",
        "train.py:TrainConfig.progress",
        """
        def changed(original, self, step, seconds):
            return min(original(self, step, seconds), 0.99)
        """,
    ),
]
REFUSED = "training took"
