"""Another schedule, and a limit on the gradient."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        warmup = 0.1
        decay_shape = 'cosine'
        grad_clip = 1.0
        """,
    ),
]
