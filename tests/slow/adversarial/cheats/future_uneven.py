"""Looks ahead at one position in ten, in steps below the largest allowed change.

Caught: the changes where the next token is another are added up apart from the others.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                bonus = 0.2 * (tokens[:, :-1] % 10 == 1).float()
                logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], bonus[..., None])
            return logits
        """,
    ),
]
REFUSED = "tokens that come after it"
