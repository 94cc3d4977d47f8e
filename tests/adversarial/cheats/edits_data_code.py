"""Changes how evaluation windows are cut. Caught by: only the recipe may change."""

EDITS = []
FILES = {"prepare_data.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
