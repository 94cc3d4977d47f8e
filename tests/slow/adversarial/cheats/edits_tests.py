"""Changes the tests. Caught: only the recipe may change."""

FILES = {"tests/test_model.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
