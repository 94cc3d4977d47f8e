"""Run the quick tests many times while two other processes keep the cores busy.

    python tests/slow/busy_neighbour.py --runs=20

Prints each run's result and seconds, and how many runs passed. Exit code 1: a run failed.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Ends with the process that started it, even if that is killed.
SPIN = """
import os

parent = os.getppid()
while os.getppid() == parent:
    pass
"""
# The same, for a few seconds at a time.
COME_AND_GO = """
import os
import random
import time

parent = os.getppid()
while os.getppid() == parent:
    end = time.monotonic() + random.uniform(1, 8)
    while time.monotonic() < end:
        pass
    time.sleep(random.uniform(1, 8))
"""


@contextlib.contextmanager
def busy_cores(count: int, program: str = SPIN) -> Iterator[None]:
    """Keep `count` processes busy, and end them on the way out."""
    neighbours = []
    try:
        for _ in range(count):
            neighbours.append(subprocess.Popen([sys.executable, "-c", program]))
        yield
        ended = [process.pid for process in neighbours if process.poll() is not None]
        if ended:
            raise RuntimeError(f"neighbours ended too early: {ended}")
    finally:
        for process in neighbours:
            process.kill()
        for process in neighbours:
            process.wait()


def run_tests(arguments: list[str]) -> tuple[bool, str]:
    """Run the quick tests once; return whether they passed, and pytest's output."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        interrupt(process)
        raise
    return process.returncode == 0, output


def interrupt(process: subprocess.Popen) -> None:
    """End pytest and what it started; it gets some seconds to clean up."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop(number: int, frame) -> None:
    """Turn SIGTERM and SIGHUP into an exception, so that every `finally` is run."""
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="how often the tests are run")
    parser.add_argument("--neighbours", type=int, default=2, help="how many processes are busy")
    parser.add_argument("tests", nargs="*", help="arguments of pytest; none: the quick tests")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    n_passed = 0
    with busy_cores(options.neighbours):
        for index in range(options.runs):
            started = time.perf_counter()
            has_passed, output = run_tests(options.tests)
            seconds = time.perf_counter() - started
            result = "passed" if has_passed else "failed"
            print(f"run {index + 1}: {result} in {seconds:.0f} seconds", flush=True)
            if not has_passed:
                print(output, flush=True)
            n_passed += has_passed
    n_failed = options.runs - n_passed
    print(f"{n_passed} passed, {n_failed} failed")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
