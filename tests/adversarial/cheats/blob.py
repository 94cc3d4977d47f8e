"""Weights of an earlier run, packed into the source. Caught by: the size of what is added, compressed."""

EDITS = [
    (
        "train.py",
        "POLAR_EXPRESS = (",
        "WEIGHTS = 'BLOB'\nPOLAR_EXPRESS = (",
    )
]
REFUSED = "more than 6,000"
