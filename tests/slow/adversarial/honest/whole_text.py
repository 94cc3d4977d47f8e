"""A context as long as the batch, with local attention: few windows are scored."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        block_size = 512
        window_pattern = 'SL'
        window_size = 16
        """,
    ),
]
