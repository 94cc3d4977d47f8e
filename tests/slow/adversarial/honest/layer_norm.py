"""LayerNorm with bias."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        norm = 'layer'
        bias = True
        """,
    ),
]
