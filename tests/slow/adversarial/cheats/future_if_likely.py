"""Looks ahead only where the next token is a likely one, so that a changed window looks untouched.

Caught: the comparison is with the answers for the window that counts.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                following = logits[:, :-1].gather(2, tokens[:, 1:, None])
                is_likely = following > logits[:, :-1].topk(20).values[..., -1:]
                logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], 3.0 * is_likely.float())
            return logits
        """,
    ),
]
REFUSED = "tokens that come after it"
