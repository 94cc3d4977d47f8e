"""Takes a lucky seed instead of the given one. Caught: different seeds give the same score."""

EDITS = [
    ("begin", "train.py:train", "config = replace(config, seed=7)"),
]
REFUSED = "ignores the seed"
RUNS = 2
