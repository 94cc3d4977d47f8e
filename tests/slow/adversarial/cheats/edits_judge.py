"""Changes how scores are computed. Caught: only the recipe may change."""

FILES = {"research/referee/score.py": "print('mine')\n"}
REFUSED = "touches|does not apply"
