"""Moves the data's code to where it may change it. Caught: a file may not be missing."""

PATCH = """\
diff --git a/nanoloop/data.py b/config/data.py
similarity index 100%
rename from nanoloop/data.py
rename to config/data.py
"""
REFUSED = "touches nanoloop/data.py"
