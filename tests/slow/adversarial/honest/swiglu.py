"""Another activation."""

EDITS = [
    ("options", "config/tiny.py", "activation = 'swiglu'"),
]
