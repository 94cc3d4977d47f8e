"""A helper and a method get other names: the same scores to the last bit."""

EDITS = [
    ("rename", "model.py:rotate", "turn_pairs"),
    ("rename", "model.py:GPT.embed", "embed_tokens"),
]
SAME = True
