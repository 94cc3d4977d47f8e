"""Activations are mixed with the mean over the batch. Caught by: a changed copy has other rows around it."""

EDITS = [
    (
        "model.py",
        "self.ln_f(x), self.lm_head.weight",
        "self.ln_f(x + 0.3 * x.mean(dim=0, keepdim=True)), self.lm_head.weight",
    )
]
REFUSED = "other rows of the batch"
