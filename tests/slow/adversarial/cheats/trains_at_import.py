"""Works while it is imported, before its own clock starts. Caught: the judge's clock runs."""

EDITS = [
    (
        "append",
        "model.py",
        """
        import time

        end = time.perf_counter() + 5
        while time.perf_counter() < end:
            pass
        """,
    ),
]
REFUSED = "training took"
BUDGET = "1s"
