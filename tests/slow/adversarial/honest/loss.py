"""Another loss, in nanoloop/loss.py: chunks where few logits would do."""

EDITS = [
    (
        "wrap",
        "nanoloop/loss.py:needs_chunks",
        """
        def changed(original, x, targets, vocab_size):
            return x.requires_grad
        """,
    ),
]
