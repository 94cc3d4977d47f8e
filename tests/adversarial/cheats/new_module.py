"""Adds a file that Python loads by itself. Caught by: only the recipe may change."""

EDITS = []
FILES = {"sitecustomize.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
