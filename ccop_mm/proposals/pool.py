"""Work in several processes that ends well: on Ctrl-C, when a worker is killed, when the parent is."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import cv2

from ccop_mm.errors import InputError


def map_unordered(function, items, workers):
    """Yields ``function(item)`` of each item, in the order they finish.

    Args:
        function (Callable): Picklable, if there is more than one worker.
        items (list): Begun in this order; a few at a time are handed out, however long the list is. ``str`` names one.
        workers (int): Processes, each with one OpenCV thread; 1 works in this process.

    Raises:
        InputError: If a worker died.
    """
    if workers < 1:
        raise InputError(f'workers is {workers} and must be 1 or more')
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(min(workers, len(items)), _context(), _start_worker) as executor:
        pending, remaining = {}, iter(items)
        try:
            while True:
                for item in itertools.islice(remaining, 2 * workers - len(pending)):
                    pending[executor.submit(function, item)] = item
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                # What is whole first: once a worker is dead every other future fails with it.
                for future in sorted(finished, key=lambda future: future.exception() is not None):
                    yield future.result()
                    del pending[future]
        except BrokenProcessPool:
            raise InputError(
                f'a worker process died, perhaps for want of memory, on one of {_some(pending.values(), workers)}; '
                'what is finished is kept: repeat the command, with fewer workers if this happens again'
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _some(items, count):
    """The names of those that were begun first, which are those in work."""
    return ', '.join(str(item) for item in itertools.islice(items, count))


def _context():
    """A way to start processes that, unlike a plain fork, copies no thread and no lock of torch, OpenCV or tqdm."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ccop_mm.proposals.work'])  # the imports take seconds: once for all workers
    return context


def _start_worker():
    # The processes share the cores already.
    cv2.setNumThreads(1)
    # Ctrl-C reaches workers too: let them end at once and in silence, the parent says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends this worker when the parent is gone; after a SIGKILL nobody else would."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
