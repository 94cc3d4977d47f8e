"""The recipe starts from weights. Caught: the judge sets that option."""

EDITS = [
    ("options", "config/tiny.py", "init_from = 'out/longer_run'"),
]
REFUSED = "sets init_from"
