"""Normalisation with the mean over time, which knows what is still to come. Caught by: the same."""

EDITS = [
    (
        "model.py",
        "self.ln_f(x), self.lm_head.weight",
        "self.ln_f(x - x.mean(dim=1, keepdim=True)), self.lm_head.weight",
    )
]
REFUSED = "tokens that come after it"
