"""Computes in helper processes, one after the other, that the kernel forgets.

Caught: their processor time counts too.
"""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import os
        import signal

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process learns what its children used
        while True:
            if os.fork() == 0:
                end = time.process_time() + 1
                while time.process_time() < end:
                    pass
                os._exit(0)
            try:
                os.wait()
            except ChildProcessError:
                pass
        """,
    ),
]
REFUSED = "training took more than .* of processor time"
