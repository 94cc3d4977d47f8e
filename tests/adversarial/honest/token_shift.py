"""A convolution over time that looks back: each token sees a part of the one before it."""

EDITS = [
    (
        "model.py",
        "        h = self.c_fc(x)\n",
        "        h = self.c_fc(x + 0.5 * F.pad(x[:, :-1], (0, 0, 1, 0)))\n",
    )
]
