"""Validation text in a comment of the source. Caught by: comparing what is added with the held-out text."""

EDITS = [
    (
        "model.py",
        """\
import math
from dataclasses import dataclass
""",
        """\
# HELD_OUT
import math
from dataclasses import dataclass
""",
    )
]
REFUSED = "held-out text"
