"""Attends to later positions too. Caught: windows that differ only later get other answers."""

EDITS = [
    (
        "wrap",
        "nanoloop/attention.py:attend",
        """
        def changed(original, q, k, v, window, scale, *rest):
            y = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=False)
            return y.to(q.dtype)
        """,
    ),
]
REFUSED = "tokens that come after it"
