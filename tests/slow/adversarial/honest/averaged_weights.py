"""Scales the trained weights before they are scored."""

EDITS = [
    (
        "wrap",
        "train.py:train",
        """
        def changed(original, config, *rest):
            summary = original(config, *rest)
            path = Path(config.out) / "last.pt"
            state = torch.load(path, weights_only=True)
            state["model"] = {name: 0.999 * weight for name, weight in state["model"].items()}
            torch.save(state, path)
            return summary
        """,
    ),
]
