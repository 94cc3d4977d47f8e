"""A schedule of another shape, in code: the square root of what is left."""

EDITS = [
    (
        "body",
        "train.py:lr_scale",
        """
        rise = min(1.0, (progress + 0.01) / 0.05)
        return rise * (1 - progress) ** 0.5
        """,
    ),
]
