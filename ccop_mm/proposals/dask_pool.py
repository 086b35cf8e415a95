"""Work on the machines of a Dask cluster."""

import asyncio
import itertools

import cv2

from ccop_mm.errors import InputError
from ccop_mm.version import __version__

#: Seconds to wait for the scheduler, and then for its first worker.
PATIENCE = 60


def map_on_dask(function, items, address, patience=PATIENCE):
    """Yields ``function(item)`` of each item, in the order they finish, from a Dask cluster; connects at once.

    An item whose worker dies goes to another; Dask gives an item up after it has lost several workers (its setting
    ``distributed.scheduler.allowed-failures``). Workers may come and go.

    Args:
        function (Callable): Importable by the workers.
        items (list): Begun in this order; a few for each worker thread are handed out at a time. ``str`` names one.
        address (str): Of the scheduler, such as ``tcp://head:8786``.
        patience (float): Seconds to wait for the scheduler, and for its first worker.

    Raises:
        InputError: If ``distributed`` is not installed, the scheduler cannot be reached or is lost, no worker comes, an
            item is given up, or a worker has another release of this package or of OpenCV.
    """
    client = _connect(address, patience, needs_worker=bool(items))
    return _results(client, function, items, address)


def _connect(address, patience, needs_worker):
    try:
        from distributed import Client
    except ImportError:
        raise InputError('a scheduler needs the package "distributed": pip install distributed') from None
    try:
        client = Client(address, timeout=patience, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f'no Dask scheduler answers at {address}: {_line(error)}') from None
    try:
        if needs_worker:
            client.wait_for_workers(1, timeout=patience)
    except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
        client.close()
        raise InputError(f'the scheduler {address} has had no worker for {patience} s: start some') from None
    return client


def _results(client, function, items, address):
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    remaining, versions = iter(items), (__version__, cv2.__version__)
    item_of = {}
    with client:
        finished = as_completed(loop=client.loop)

        def hand_out():
            # Asked each time, for workers come and go.
            threads = sum(client.nthreads().values()) or 1
            for item in itertools.islice(remaining, max(0, 2 * threads + 2 - len(item_of))):
                future = client.submit(_work, function, item, versions, pure=False)
                item_of[future.key] = item
                finished.add(future)

        try:
            hand_out()
            for future in finished:
                item = item_of.pop(future.key)
                try:
                    result = future.result()
                except KilledWorker:
                    raise InputError(
                        f'{item}: given up after several workers died of it; what is finished is kept'
                    ) from None
                yield result
                hand_out()
        except (FutureCancelledError, OSError) as error:
            lost = f'the scheduler {address} was lost ({_line(error)})'
            raise InputError(f'{lost}: what is finished is kept; repeat the command') from None


def _line(error):
    return ' '.join(str(error).split())


def _work(function, item, versions):
    found = (__version__, cv2.__version__)
    if found != versions:
        raise InputError(
            f'a worker has ccop_mm {found[0]} and OpenCV {found[1]}, this machine {versions[0]} and {versions[1]}: '
            'boxes would depend on who found them'
        )
    cv2.setNumThreads(1)  # a worker's threads share the cores already
    return function(item)
