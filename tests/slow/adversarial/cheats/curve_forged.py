"""Writes a log of what is no number. Gains nothing: it is a claim, and only plotted."""

EDITS = [
    (
        "wrap",
        "train.py:train",
        """
        def changed(original, config, *rest):
            summary = original(config, *rest)
            rows = ["NaN", "[" * 100_000, '{"tokens": 1e400, "loss": 1}', "\\0"]
            rows += ['{"tokens": 1, "loss": NaN}', '{"tokens": "<b>", "loss": "</script>"}'] * 9
            (Path(config.out) / "log.jsonl").write_text("\\n".join(rows))
            return summary
        """,
    ),
]
GAINS_NOTHING = 1e-9
