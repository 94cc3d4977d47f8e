"""Changes how scores are computed. Caught by: only the recipe may change."""

EDITS = []
FILES = {"research/score.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
