"""Uses a larger vocabulary than the data's. Caught: the data's vocabulary counts."""

EDITS = [
    ("options", "config/tiny.py", "vocab_size = 512"),
]
REFUSED = "its vocabulary is 512"
