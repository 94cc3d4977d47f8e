"""Looks for a row of the batch that begins alike and takes its next tokens as the answer.

Caught: a changed copy has other rows beside it.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, targets=None, *rest, **options):
            logits = original(self, tokens, targets, *rest, **options)
            if not self.training and targets is None:
                is_alike = tokens[:, None, 0] == tokens[None, :, 0]
                alike = is_alike.float().fill_diagonal_(0)  # (B, B)
                following = F.one_hot(tokens.roll(-1, 1), logits.size(-1)).float()  # (B, T, V)
                logits = logits + 0.5 * torch.einsum("ij,jtv->itv", alike, following)
            return logits
        """,
    ),
]
REFUSED = "other rows of the batch"
