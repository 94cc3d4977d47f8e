"""Attention is no longer causal. Caught by: windows that differ only later."""

EDITS = [
    (
        "model.py",
        "is_causal=True if T > 1 else False",
        "is_causal=False",
    )
]
REFUSED = "tokens that come after it"
