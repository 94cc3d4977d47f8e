"""The recipe asks for more steps, and for another seed. Caught by: the same."""

EDITS = [
    (
        "config/tiny.py",
        "max_steps = 25\n",
        """\
max_steps = 5000
seed = 7
""",
    )
]
REFUSED = "sets max_steps, seed"
