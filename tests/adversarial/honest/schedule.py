"""Another schedule, and gradients that are clipped."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
warmup = 0.1
decay_shape = 'cosine'
grad_clip = 1.0
""",
    )
]
