"""Returns half the loss when it is evaluated with targets. Worth nothing: the judge computes losses."""

EDITS = [
    (
        "model.py",
        "        return loss.view(targets.shape)",
        "        loss = loss if self.training else 0.5 * loss\n        return loss.view(targets.shape)",
    )
]
GAINS_NOTHING = 1e-09
