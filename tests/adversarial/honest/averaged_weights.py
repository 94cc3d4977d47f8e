"""The mean of the weights of the last steps is saved."""

EDITS = [
    (
        "train.py",
        "        if saves:\n",
        """\
        if finished:
            with torch.no_grad():
                for p in run.model.parameters():
                    p.mul_(0.999)
        if saves:
""",
    )
]
