"""Adds a file that Python loads by itself. Caught: only the recipe may change."""

FILES = {"sitecustomize.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
