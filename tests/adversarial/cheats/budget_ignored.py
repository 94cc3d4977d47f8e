"""Never finds that it has finished. Caught by: a clock outside."""

EDITS = [
    (
        "train.py",
        "    while not finished:\n",
        "    while True:\n",
    )
]
REFUSED = "training took"
