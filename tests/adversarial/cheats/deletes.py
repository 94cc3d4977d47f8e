"""Takes a file away. Caught by: nothing may go."""

EDITS = []
FILES = {"config/gpt2.py": None}
REFUSED = "deletes config/gpt2.py"
