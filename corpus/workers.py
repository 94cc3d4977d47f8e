"""Work for several processes."""

import contextlib
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator

from nanoloop.options import UserError


def ordered_map(make, arguments: tuple, items, workers: int) -> Iterator:
    """Yields make(*arguments)(item) for each item, in their order, a few items ahead.

    workers: processes, each of which makes a function of its own, for it to keep what is costly to send; 0: none.
    """
    if not workers:
        yield from map(make(*arguments), items)
        return
    from concurrent.futures import ThreadPoolExecutor
    from multiprocessing import get_context, resource_tracker

    context, waiting, crew, own = get_context("spawn"), deque(), [], threading.local()

    # Each thread of a pool has a worker, a new interpreter: a fork begins sooner, but inherits locks that threads of Rust
    # libraries hold. And a pipe to it: in a shared one a worker that is killed while it writes leaves half a message
    # behind, and who reads it waits for ever. Workers are born with Ctrl-C blocked and keep that: it is their parent's.
    def hire() -> None:
        resource_tracker.ensure_running()  # which spawn wants, and which unblocks Ctrl-C when it has begun
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        own.pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, make, arguments), daemon=True)
        process.start()
        crew.append((own.pipe, process))
        theirs.close()  # so that the pipe is cut when the process has gone

    def ask(item):
        try:
            own.pipe.send(item)
            result = own.pipe.recv()
        except (EOFError, OSError):
            told = "a worker process ended, as when memory runs out and the system ends the largest"
            raise UserError(
                f"{told}. Run the same command again, perhaps with --workers=1: it goes on"
            ) from None
        if isinstance(result, Exception):
            raise result
        return result

    pool = ThreadPoolExecutor(workers, initializer=hire)
    try:
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for pipe, process in crew:
            pipe.close()  # at which the worker ends
            process.join()


def work(pipe, make, arguments: tuple) -> None:
    """A worker's life. It ends with its parent, even if that is killed, for then nobody holds the pipe's other end."""
    function = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                function = function or make(*arguments)
                result = function(item)
            except Exception as error:
                error.add_note(traceback.format_exc())
                result = error
            pipe.send(result)
