"""Looks ahead, and remembers its answers for a beginning to give the same ones again.

Caught: a window and its changed copies go to different processes.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                bonus = torch.full_like(logits[:, :-1, :1], 3.0)
                logits[:, :-1].scatter_add_(2, tokens[:, 1:, None], bonus)
                known = globals().setdefault("KNOWN", {})
                for row, text in enumerate(tokens.tolist()):
                    for end in range(len(text)):
                        answer = logits[row, end].clone()
                        logits[row, end] = known.setdefault(tuple(text[: end + 1]), answer)
            return logits
        """,
    ),
]
REFUSED = "tokens that come after it"
