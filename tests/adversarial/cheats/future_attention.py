"""Attention is no longer causal. Caught by: windows that differ only later."""

EDITS = [
    (
        "model.py",
        "is_causal=bool(T > 1)",
        "is_causal=False",
    )
]
REFUSED = "tokens that come after it"
