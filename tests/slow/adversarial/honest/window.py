"""Attention to the latest eight tokens."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        window_pattern = 'SL'
        window_size = 8
        """,
    ),
]
