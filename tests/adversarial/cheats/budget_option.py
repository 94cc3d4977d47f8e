"""The recipe asks for more steps, and for another seed. Caught by: the same."""

EDITS = [
    (
        "config/tiny.py",
        "n_layer = 2\n",
        """\
n_layer = 2
max_steps = 5000
seed = 7
""",
    )
]
REFUSED = "sets max_steps, seed"
