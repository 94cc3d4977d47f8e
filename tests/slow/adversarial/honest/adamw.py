"""Another optimizer."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        optimizer = 'adamw'
        learning_rate = 3e-3
        """,
    ),
]
