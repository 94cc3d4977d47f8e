"""Works on in a thread after its run has ended, and at exit. Caught: the judge's clock runs."""

EDITS = [
    (
        "wrap",
        "train.py:train",
        """
        def changed(original, config, *rest):
            import atexit
            import threading

            def work():
                end = time.perf_counter() + 5
                while time.perf_counter() < end:
                    pass

            summary = original(config, *rest)
            atexit.register(work)
            threading.Thread(target=work).start()
            return summary
        """,
    ),
]
REFUSED = "training took"
BUDGET = "1s"
