"""Parallel map over the workers of a Dask cluster."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cv2

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line
from ccop_mm.version import __version__

if TYPE_CHECKING:
    from distributed import Client

#: Seconds to wait for the scheduler, and then for its first worker.
PATIENCE = 60

Item = TypeVar('Item')
Result = TypeVar('Result')


def map_on_dask(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    address: str,
    patience: float = PATIENCE,
    on_killed: Callable[[Item], Result] | None = None,
) -> Iterator[Result]:
    """Connects to a Dask cluster and yields ``function(item)`` for each item, in the order of completion.

    Items of a worker that dies are given to another one, until several workers have died on the same item (setting
    ``distributed.scheduler.allowed-failures``). This includes items that only waited on these workers. Such items are
    therefore processed again at the end, one at a time. Workers may join and leave at any time.

    Args:
        function (Callable): Function of one item that the workers can import.
        items (Sequence): Items, started in this order. Only a few per worker thread are submitted at a time.
            ``str(item)`` names an item in messages.
        address (str): Address of the scheduler, such as ``tcp://head:8786``.
        patience (float): Seconds to wait for the scheduler, and for a worker if there is none.
        on_killed (Callable, optional): Returns the result of an item on which several workers died although it was the
            only one. By default it ends the run.

    Raises:
        InputError: If ``distributed`` is not installed, the scheduler cannot be reached or is lost, no worker joins, an
            item kills several workers and there is no ``on_killed``, or a worker has another version of this package or
            of OpenCV.
    """
    client = _connect(address, patience, needs_worker=bool(items))
    return _results(client, function, items, address, patience, on_killed)


def _connect(address: str, patience: float, needs_worker: bool) -> 'Client':
    try:
        from distributed import Client
    except ImportError:
        raise InputError('a Dask scheduler requires the package "distributed": pip install distributed') from None
    try:
        client = Client(address, timeout=patience, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f'no Dask scheduler answers at {address}: {single_line(error)}') from None
    if needs_worker:
        try:
            _wait_for_worker(client, address, patience)
        except InputError:
            client.close()
            raise
    return client


def _wait_for_worker(client: 'Client', address: str, patience: float) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise InputError(f'the scheduler {address} has had no worker for {patience} s: start workers') from None


def _results(
    client: 'Client',
    function: Callable[[Item], Result],
    items: Sequence[Item],
    address: str,
    patience: float,
    on_killed: Callable[[Item], Result] | None,
) -> Iterator[Result]:
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    remaining, versions = iter(items), (__version__, cv2.__version__)
    item_by_key: dict[Any, Item] = {}
    suspects: list[Item] = []
    with client:
        finished = as_completed(loop=client.loop)

        def submit() -> None:
            num_threads = sum(client.nthreads().values()) or 1  # changes as workers join and leave
            for item in itertools.islice(remaining, max(0, 2 * num_threads + 2 - len(item_by_key))):
                future = client.submit(_run_on_worker, function, item, versions, pure=False)
                item_by_key[future.key] = item
                finished.add(future)

        try:
            submit()
            for future in finished:
                item = item_by_key.pop(future.key)
                try:
                    result = future.result()
                except KilledWorker:
                    suspects.append(item)
                else:
                    yield result
                submit()
            for item in suspects:
                _wait_for_worker(client, address, patience)
                try:
                    result = client.submit(_run_on_worker, function, item, versions, pure=False).result()
                except KilledWorker:
                    if on_killed is None:
                        raise InputError(
                            f'{item}: several workers died while processing it; finished items are kept'
                        ) from None
                    result = on_killed(item)
                yield result
        except (FutureCancelledError, OSError) as error:
            raise InputError(
                f'the connection to the scheduler {address} was lost ({single_line(error)}); finished items are kept: '
                'repeat the command'
            ) from None


def _run_on_worker(function: Callable[[Item], Result], item: Item, versions: tuple[str, str]) -> Result:
    """Runs on a worker, and checks that its versions are those of the client."""
    found = (__version__, cv2.__version__)
    if found != versions:
        raise InputError(
            f'a worker has ccop_mm {found[0]} and OpenCV {found[1]}, this machine has {versions[0]} and {versions[1]}: '
            'install the same versions, because the boxes may depend on them'
        )
    cv2.setNumThreads(1)  # the threads of a worker use its cores already
    return function(item)
