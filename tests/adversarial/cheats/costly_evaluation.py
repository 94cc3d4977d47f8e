"""Answers after long thought. Caught by: the time that the baseline takes."""

EDITS = [
    (
        "model.py",
        """\
        if targets is None:
            return logits
""",
        """\
        if not self.training and targets is None:
            import time

            time.sleep(5)
        if targets is None:
            return logits
""",
    )
]
REFUSED = "evaluation takes more than"
