"""Comments alone."""

EDITS = [
    (
        "model.py",
        """\
import math
from dataclasses import dataclass
""",
        """\
# The next three lines import what the model is made of.
import math
from dataclasses import dataclass
""",
    )
]
SAME = True
