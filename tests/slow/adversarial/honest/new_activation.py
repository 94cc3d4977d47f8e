"""A new activation, in code."""

EDITS = [
    (
        "body",
        "model.py:MLP.forward",
        """
        h = self.c_fc(x)
        return self.c_proj(h * torch.tanh(F.softplus(h)))
        """,
    ),
]
