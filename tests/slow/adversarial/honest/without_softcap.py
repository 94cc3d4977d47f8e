"""A feature is deleted: the bound of the logits. It makes the recipe simpler."""

EDITS = [
    (
        "body",
        "model.py:GPT.to_logits",
        "return F.linear(x, weight.to(x.dtype))[..., : self.config.vocab_size].float()",
    ),
]
SIMPLER = True
