"""A patch that writes outside its tree. Caught by: only the recipe may change."""

EDITS = []
FILES = {"../outside.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
