"""Changes how text is generated, which is no part of training.

Caught: only the recipe may change.
"""

FILES = {"nanoloop/generate.py": "print('mine')\n"}
REFUSED = "touches nanoloop/generate.py"
