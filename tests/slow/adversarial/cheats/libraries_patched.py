"""Rewires torch, json and time in its process. Gains nothing: the judge is another process."""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import json

        json.dump = print
        time.time = lambda: 0.0
        torch.allclose = lambda *arguments: True
        """,
    ),
]
GAINS_NOTHING = 1e-9
