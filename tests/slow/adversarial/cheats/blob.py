"""Packs the weights of an earlier run into the source.

Caught: the size of what it adds, compressed.
"""

EDITS = [
    ("append", "train.py", "WEIGHTS = 'BLOB'"),
]
REFUSED = "more than 6,000"
