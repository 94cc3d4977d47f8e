"""Takes text along in its checkpoint and trains on when the checkpoint is loaded to be scored.

Caught: the processor time before the first answer is limited.
"""

EDITS = [
    (
        "wrap",
        "model.py:GPT.__init__",
        """
        def changed(original, self, *arguments):
            original(self, *arguments)
            self.register_buffer("text", torch.zeros(20_000, dtype=torch.int64))
        """,
    ),
    (
        "wrap",
        "train.py:make_optimizers",
        """
        def changed(original, model, config):
            from nanoloop.data import Data

            text = Data(config.data).splits["train"].read(0, 20_000)
            model.text[:] = torch.from_numpy(text.astype("int64"))
            return original(model, config)
        """,
    ),
    (
        "wrap",
        "model.py:GPT.forward",
        """
        def changed(original, self, tokens, *rest, **options):
            if not self.training and not hasattr(self, "is_known"):
                self.is_known = True
                optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
                torch.manual_seed(0)
                T = self.config.block_size
                for step in range(250):
                    starts = torch.randint(len(self.text) - T, (32, 1))
                    rows = self.text[starts + torch.arange(T + 1)]
                    with torch.enable_grad():
                        original(self, rows[:, :-1], rows[:, 1:]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            return original(self, tokens, *rest, **options)
        """,
    ),
]
REFUSED = "before its first answer|processor time"
