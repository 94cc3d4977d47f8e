"""Work for several processes, in order.

A worker may be killed (out of memory) while it writes a result. The executors of
concurrent.futures (Python 3.11) and loky (3.7) have one pipe for all results: half a message and
the lock of the dead worker stay in it, and the parent waits for ever. Their workers also survive a
parent that is killed. So each worker here has its own pipe.
"""

import contextlib
import signal
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context, resource_tracker

from nanoloop.options import UserError


class Worker:
    """A process and a pipe to it. The process ends when the pipe is closed."""

    def __init__(self, make_function):
        # A forked process starts sooner, but it inherits the locks that threads of libraries hold.
        context = get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(child_pipe, make_function), daemon=True)
        self.process.start()
        child_pipe.close()  # reading fails when the process has ended

    def call(self, item):
        try:
            self.pipe.send(item)
            result = self.pipe.recv()
        except (EOFError, OSError):
            hint = "Run the same command again, perhaps with --workers=1: it resumes"
            raise UserError(f"a worker was killed (out of memory?). {hint}") from None
        if isinstance(result, Exception):
            raise result
        return result


def serve(pipe, make_function):
    """Answer the items in the pipe until the parent closes it or ends."""
    function = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                function = function or make_function()
                result = function(item)
            except Exception as error:
                error.add_note(traceback.format_exc())
                result = error
            pipe.send(result)


@contextlib.contextmanager
def hold_interrupts():
    """Keep a Ctrl-C until the block ends; processes started in it keep it blocked."""
    # The first worker would start the resource tracker, which unblocks it.
    resource_tracker.ensure_running()
    held = []
    # A thread of a library may receive it, though this one blocks it. Half a start of a worker
    # would leave a process that waits for the other half and prints a traceback.
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def ordered_map(make_function, items, count):
    """Yield make_function()(item) for each item, in order, computed a few items ahead.

    make_function: called once in each process; it keeps what is costly to send. count: the number
    of processes, 0 for none. Raises UserError if a worker is killed, and the function's errors.
    """
    if count == 0:
        yield from map(make_function(), items)
        return
    workers = []

    def call(item):
        worker = workers.pop()  # there are as many workers as threads
        try:
            return worker.call(item)
        finally:
            workers.append(worker)

    threads = ThreadPoolExecutor(count)
    pending = deque()
    try:
        with hold_interrupts():
            workers.extend(Worker(make_function) for _ in range(count))
        for item in items:
            pending.append(threads.submit(call, item))
            if len(pending) > 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.pipe.close()
            worker.process.join()
