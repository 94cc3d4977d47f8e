"""A patch that writes outside its tree. Caught: only the recipe may change."""

FILES = {"../outside.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
