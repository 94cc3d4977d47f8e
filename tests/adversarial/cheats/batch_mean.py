"""Activations are mixed with the mean over the batch. Caught by: a changed copy has other rows around it."""

EDITS = [
    (
        "model.py",
        "self.lm_head(self.ln_f(x))",
        "self.lm_head(self.ln_f(x + 0.3 * x.mean(dim=0, keepdim=True)))",
    )
]
REFUSED = "other rows of the batch"
