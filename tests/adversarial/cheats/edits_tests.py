"""Changes the tests. Caught by: only the recipe may change."""

EDITS = []
FILES = {"tests/test_model.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
