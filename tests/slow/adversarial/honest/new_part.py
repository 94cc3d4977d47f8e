"""A new module with parameters: a gate for each channel, learned with the scalars."""

EDITS = [
    (
        "append",
        "model.py",
        """
        class Gate(nn.Module):
            def __init__(self, size):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(size))

            def forward(self, x):
                return self.weight.to(x.dtype) * x
        """,
    ),
    (
        "wrap",
        "model.py:Block.__init__",
        """
        def changed(original, self, config, layer):
            original(self, config, layer)
            self.gate = Gate(config.n_embd)
        """,
    ),
    (
        "wrap",
        "model.py:Block.forward",
        """
        def changed(original, self, x, *context):
            return self.gate(original(self, x, *context))
        """,
    ),
]
