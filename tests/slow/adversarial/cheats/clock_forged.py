"""Slows down the clock that measures its budget. Caught: the judge has a clock outside."""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        clock = time.perf_counter
        origin = clock()
        time.perf_counter = lambda: origin + (clock() - origin) / 10
        """,
    ),
]
REFUSED = "training took"
BUDGET = "1s"
