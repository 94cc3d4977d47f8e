"""Rewires torch, json and time inside its own process. Worth nothing: the judge is another process."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    import json

    json.dump = print
    time.time = lambda: 0.0
    torch.allclose = lambda *a: True
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
