"""Stop in one line, on import, where this Python lacks the libraries of training.

A program imports it first: the others would end in a traceback.
"""

import sys
from importlib.util import find_spec

for name in ("torch", "numpy", "tyro"):
    if find_spec(name) is None:
        print(
            f"error: {sys.executable} has no {name}: type `source .venv/bin/activate`, or install "
            "requirements.txt as README.md shows",
            file=sys.stderr,
        )
        sys.exit(2)
