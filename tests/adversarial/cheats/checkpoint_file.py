"""A trained checkpoint lies beside the recipe. Caught by: only Python files may be added, to config/."""

EDITS = []
FILES = {"config/weights.pt": "not really a checkpoint"}
REFUSED = "touches config/weights.pt"
