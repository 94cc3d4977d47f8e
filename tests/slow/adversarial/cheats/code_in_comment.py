"""Hides code in comments, which cost no tokens: the file says that it is written in another way.

Caught: Python reads source as UTF-8 alone.
"""

TEXT = "# coding: unicode_escape\n# \\u000aN_LAYER = 3\n"
FILES = {"config/hidden.py": TEXT}
REFUSED = "UTF-8"
