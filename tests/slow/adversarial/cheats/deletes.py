"""Deletes a file. Caught: no file may be missing."""

FILES = {"config/gpt2.py": None}
REFUSED = "deletes config/gpt2.py"
