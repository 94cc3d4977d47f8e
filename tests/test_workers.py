"""Workers: the same results in the same order, and no death of a process leaves another waiting."""

import signal
import subprocess
import sys
import threading

import pytest

from corpus import workers
from corpus.workers import ordered_map
from nanoloop.options import UserError
from tests import worker_tasks
from tests.conftest import ROOT


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(count):
    results = ordered_map(worker_tasks.make_slow_start, range(20), count)
    assert list(results) == [2 * number for number in range(20)]


def test_each_worker_makes_its_function_once():
    last = dict(ordered_map(worker_tasks.make_counter, range(20), 2))
    assert len(last) <= 2  # processes
    assert sum(last.values()) == 20


def test_items_are_read_only_a_few_ahead():
    read = []

    def items():
        for number in range(100):
            read.append(number)
            yield number

    results = ordered_map(worker_tasks.make_doubler, items(), 2)
    next(results)
    assert len(read) <= 6
    results.close()


def test_an_error_of_the_function_is_raised_with_the_traceback_of_its_worker():
    results = ordered_map(worker_tasks.make_divider, [1, 0], 1)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError) as raised:
        next(results)
    assert "worker_tasks.py" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    "make_function", [worker_tasks.make_suicide, worker_tasks.make_half_message]
)
def test_a_worker_that_is_killed_ends_the_work_with_a_message(make_function):
    """Also while it writes a large result: the parent would wait for the rest of the message."""
    results = ordered_map(make_function, range(10), 2)
    with pytest.raises(UserError, match=r"a worker was killed \(out of memory\?\).*it resumes"):
        list(results)


def test_a_large_result_arrives():
    (result,) = ordered_map(worker_tasks.make_large_result, [10_000_000], 1)
    assert len(result) == 10_000_000


def test_workers_end_with_a_parent_that_is_killed():
    """They hold the parent's standard output: it ends when they have ended."""
    program = [sys.executable, "-m", "tests.worker_tasks"]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.strip().isdigit()


def test_ctrl_c_belongs_to_the_parent():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    (blocked,) = ordered_map(worker_tasks.make_blocked_signals, [None], 1)
    assert signal.SIGINT in blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_ctrl_c_waits_until_the_workers_have_started(monkeypatch, capfd):
    """Also where a thread of a library receives it. Half a start would print a traceback."""
    started = []

    class InterruptedWorker(workers.Worker):
        def __init__(self, make_function):
            interrupt = threading.Thread(target=signal.raise_signal, args=[signal.SIGINT])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            interrupt.start()  # it inherits the signals that its parent blocks
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            interrupt.join()
            super().__init__(make_function)
            started.append(self.process)

    monkeypatch.setattr(workers, "Worker", InterruptedWorker)
    results = ordered_map(worker_tasks.make_doubler, range(10), 2)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert len(started) == 2
    for process in started:
        process.join()
    assert "Traceback" not in capfd.readouterr().err
