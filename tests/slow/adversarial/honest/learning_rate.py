"""Another learning rate."""

EDITS = [
    ("options", "config/tiny.py", "muon_lr = 0.04"),
]
