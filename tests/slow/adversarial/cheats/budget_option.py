"""The recipe asks for more steps and for another seed. Caught: the judge sets those options."""

EDITS = [
    (
        "options",
        "config/tiny.py",
        """
        max_steps = 5000
        seed = 7
        """,
    ),
]
REFUSED = "sets max_steps, seed"
