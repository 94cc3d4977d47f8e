"""What workers do in tests. A worker is a new interpreter and imports its task from here."""

import os
import signal
import stat
import struct
import sys
import time


def make_doubler():
    return lambda number: 2 * number


def make_slow_start():
    """Return a function whose first items take longest, so that results come out of order."""

    def double(number):
        time.sleep(0.05 if number == 0 else 0)
        return 2 * number

    return double


def make_counter():
    """Return a function that says how often its worker has called it."""
    calls = []

    def count(item):
        calls.append(item)
        return os.getpid(), len(calls)

    return count


def make_divider():
    return lambda number: 1 // number


def make_large_result():
    return lambda size: b"x" * size


def make_blocked_signals():
    return lambda item: signal.pthread_sigmask(signal.SIG_BLOCK, [])


def make_suicide():
    """Return a function that kills its worker at the item 3."""

    def kill(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return kill


def sockets() -> list[int]:
    """Return the numbers of open sockets: the worker's end of its pipe is one."""
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    return [file for file in files if file > 2 and is_socket(file)]


def is_socket(file: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(file).st_mode)
    except OSError:  # the file of the listing itself is closed
        return False


def make_half_message():
    """Return a function that kills its worker behind the first bytes of a large result."""

    def write_half(number):
        if number == 3:
            # A message of multiprocessing is its length and its bytes.
            for file in sockets():
                os.write(file, struct.pack("!i", 100_000_000) + b"x" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return write_half


def kill_the_parent() -> None:
    """A program: start workers, print something from one, and be killed."""
    from corpus.workers import ordered_map

    results = ordered_map(make_counter, range(100), 2)
    print(next(results)[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(kill_the_parent())
