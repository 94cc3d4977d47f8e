"""Slows down the clock that its budget is measured with. Caught by: a clock outside."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
    clock, origin_ = time.perf_counter, time.perf_counter()
    time.perf_counter = lambda: origin_ + (clock() - origin_) / 10
    # What the run needs, checked before anything is written.
""",
    )
]
REFUSED = "training took"
BUDGET = "1s"
