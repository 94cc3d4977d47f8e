"""The recipe is a link to another file. Caught: only plain files are read."""

LINK = ("model.py", "/etc/passwd")
REFUSED = "not a plain file"
