"""A file that is no Python source. Caught by: only source can be read by those who judge it."""

EDITS = []
FILES = {"model.py": "\x00\x01\x02"}
REFUSED = "not Python source|not plain text"
