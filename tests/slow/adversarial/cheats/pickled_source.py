"""A file that is no Python source. Caught: a judge can read only source."""

FILES = {"model.py": "\x00\x01\x02"}
REFUSED = "not Python source|not plain text"
