"""What a program needs before it imports torch; it imports this module first.

On import, it stops in one line where this Python lacks a library that training needs. And it lets
OpenMP's idle threads sleep: they wait actively otherwise, and beside another busy process a step
takes up to four times as long (docs/figures.md).
"""

import os
import sys
from importlib.util import find_spec

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

for name in ("torch", "numpy", "tyro"):
    if find_spec(name) is None:
        print(
            f"error: {sys.executable} has no {name}: type `source .venv/bin/activate`, or install "
            "requirements.txt as README.md shows",
            file=sys.stderr,
        )
        sys.exit(2)
