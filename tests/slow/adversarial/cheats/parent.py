"""Ends, stops or traces the processes above it. Gains nothing: it may not."""

EDITS = [
    (
        "begin",
        "train.py:train",
        """
        import ctypes
        import os
        import signal

        libc = ctypes.CDLL(None)
        if libc.ptrace(16, 1, 0, 0) == 0 or libc.unshare(0x10000000) == 0:
            raise SystemExit(99)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            try:
                os.kill(1, number)
            except OSError:
                pass
        """,
    ),
]
GAINS_NOTHING = 1e-9
