"""Other hyperparameters of the optimizer, in code: a smaller second momentum, more decay."""

EDITS = [
    (
        "wrap",
        "train.py:make_optimizers",
        """
        def changed(original, model, config):
            return original(model, replace(config, beta2=0.9, weight_decay=0.1))
        """,
    ),
]
