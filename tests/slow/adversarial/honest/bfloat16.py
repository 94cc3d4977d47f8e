"""Activations with seven bits after the point: rounding is no leak."""

EDITS = [
    ("options", "config/tiny.py", "dtype = 'bfloat16'"),
]
