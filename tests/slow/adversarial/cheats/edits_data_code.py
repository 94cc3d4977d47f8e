"""Changes how evaluation windows are cut. Caught: only the recipe may change."""

FILES = {"nanoloop/data.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
