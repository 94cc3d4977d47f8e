"""A new option with a default, and a recipe that sets it."""

EDITS = [
    (
        "append",
        "model.py",
        """
        @dataclass(frozen=True)
        class GPTConfig(GPTConfig):
            late_scale: float = 1.0  # of the last activations
        """,
    ),
    (
        "wrap",
        "model.py:GPT.to_logits",
        """
        def changed(original, self, x, weight):
            return original(self, self.config.late_scale * x, weight)
        """,
    ),
    ("options", "config/tiny.py", "late_scale = 1.1"),
]
