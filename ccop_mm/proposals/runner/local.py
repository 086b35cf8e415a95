"""Parallel map over local processes that handles Ctrl-C, killed workers and a killed parent."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import TypeVar

import cv2

from ccop_mm.utils.errors import InputError

Item = TypeVar('Item')
Result = TypeVar('Result')


def map_unordered(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Returns an iterator over ``function(item)`` of each item, in the order of completion.

    Args:
        function (Callable): Function of one item; must be picklable if there is more than one worker.
        items (Sequence): Items, started in this order. Only a few at a time are submitted, however many there are.
            ``str(item)`` names an item in messages.
        workers (int): Number of processes, each with one OpenCV thread; 1 runs in the calling process.

    Raises:
        InputError: If a worker process dies, or ``workers`` is less than 1.
    """
    if workers < 1:
        raise InputError(f'workers must be at least 1, got {workers}')
    if workers == 1 or len(items) < 2:
        return map(function, items)
    return _map_in_processes(function, items, workers)


def _map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    with ProcessPoolExecutor(min(workers, len(items)), _context(), _initialize_worker) as executor:
        remaining = iter(items)
        pending: dict[Future[Result], Item] = {}
        try:
            while True:
                for item in itertools.islice(remaining, 2 * workers - len(pending)):
                    pending[executor.submit(function, item)] = item
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                # Successful futures first: once a worker has died, all other futures fail with it.
                for future in sorted(finished, key=lambda future: future.exception() is not None):
                    yield future.result()
                    del pending[future]
        except BrokenProcessPool:
            # Items are in the order of submission, so that the first ones are those that were running.
            running = ', '.join(str(item) for item in itertools.islice(pending.values(), workers))
            raise InputError(
                f'a worker process died while processing one of {running}, possibly because memory ran out; finished '
                'items are kept: repeat the command, with fewer workers if this happens again'
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Returns a start method that, unlike fork, copies no threads and no locks of torch, OpenCV or tqdm."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ccop_mm.proposals.image_record'])  # imported once for all workers
    return context


def _initialize_worker() -> None:
    cv2.setNumThreads(1)  # the processes use all cores already
    # Ctrl-C is sent to workers too: they exit at once without a traceback, and the parent prints the message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when the parent is gone; after SIGKILL the parent cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, 'runs in worker processes only'
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
