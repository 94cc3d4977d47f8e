"""Activations with seven bits after the point: rounding is not a leak."""

EDITS = [
    (
        "config/tiny.py",
        'dtype = "float32"\n',
        'dtype = "bfloat16"\n',
    )
]
