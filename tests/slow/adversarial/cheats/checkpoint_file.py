"""A trained checkpoint is in the tree. Caught: only Python files may be added, to config/."""

FILES = {"config/weights.pt": "not really a checkpoint"}
REFUSED = "touches config/weights.pt"
