"""A convolution over time that is centred instead of looking back. Caught by: the same."""

EDITS = [
    (
        "model.py",
        "        h = self.c_fc(x)\n",
        "        h = self.c_fc(x + 0.5 * F.pad(x[:, 1:], (0, 0, 0, 1)))\n",
    )
]
REFUSED = "tokens that come after it"
