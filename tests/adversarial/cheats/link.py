"""The recipe is a link to another file. Caught by: plain files only."""

EDITS = []
LINK = ("model.py", "/etc/passwd")
REFUSED = "not a plain file"
