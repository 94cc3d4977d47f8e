"""A refactor that changes nothing: the same numbers to the last bit."""

EDITS = [
    (
        "model.py",
        """\
        x = x + self.attn(self.ln_1(x), *context)
        return x + self.mlp(self.ln_2(x))
""",
        """\
        h = self.ln_1(x)
        x = x + self.attn(h, *context)
        h = self.ln_2(x)
        return x + self.mlp(h)
""",
    )
]
SAME = True
