"""The same work on a Dask cluster, here of two processes on this machine.

Functions and items are builtins: worker processes cannot import a test file.
"""

import contextlib
import logging
import operator
import os
import signal
import threading
import time

import cv2
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import dask_pool, list_photos
from ccop_mm.proposals.dask_pool import map_on_dask
from ccop_mm.proposals.run import run

distributed = pytest.importorskip('distributed', reason='needs the package distributed')
dask = pytest.importorskip('dask')


@pytest.fixture(scope='module')
def cluster():
    with (
        # An item is given up after the second worker, not the fourth: each new one takes seconds to start.
        dask.config.set({'distributed.scheduler.allowed-failures': 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=':0', silence_logs=logging.CRITICAL
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.run(__import__, 'ccop_mm.proposals.work')  # takes seconds
        yield cluster


def test_every_item_is_done_once_elsewhere(cluster):
    assert sorted(map_on_dask(operator.neg, list(range(40)), cluster.scheduler_address)) == list(range(-39, 1))
    assert list(map_on_dask(operator.neg, [], cluster.scheduler_address)) == []
    pids = set(map_on_dask(eval, ['__import__("os").getpid()'] * 8, cluster.scheduler_address))
    assert os.getpid() not in pids
    threads = map_on_dask(eval, ['__import__("cv2").getNumThreads()'] * 2, cluster.scheduler_address)
    assert set(threads) == {1}


def test_few_items_are_handed_out_at_a_time(cluster):
    handed_out = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                handed_out.append(item)
                yield item

    results = map_on_dask(operator.neg, Items(range(100)), cluster.scheduler_address)
    next(results)
    assert len(handed_out) <= 8
    results.close()


def test_error_of_the_function_is_raised(cluster):
    with pytest.raises(ZeroDivisionError):
        list(map_on_dask(eval, ['1', '1/0', '2'], cluster.scheduler_address))


def test_workers_of_another_release_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(dask_pool, '__version__', '0.0')
    with pytest.raises(InputError, match=r'a worker has ccop_mm .*, this machine 0\.0'):
        list(map_on_dask(operator.neg, [1], cluster.scheduler_address))


def test_no_scheduler_and_no_worker_end_in_one_line():
    with pytest.raises(InputError, match='no Dask scheduler answers at tcp://127.0.0.1:9') as caught:
        list(map_on_dask(operator.neg, [1], 'tcp://127.0.0.1:9', patience=1))
    assert '\n' not in str(caught.value)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=':0', silence_logs=logging.CRITICAL) as empty,
        pytest.raises(InputError, match='has had no worker for 1 s'),
    ):
        list(map_on_dask(operator.neg, [1], empty.scheduler_address, patience=1))


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_same_bytes_although_a_worker_is_killed(cluster, tmp_path, scene):
    root, partial = tmp_path / 'photos', tmp_path / 'dask.npz.partial'
    root.mkdir()
    for seed in range(30):
        cv2.imwrite(str(root / f'{seed}.png'), scene(seed))
    (root / 'bad.jpg').write_text('no photo')
    photos = list_photos(root)
    run(photos, tmp_path / 'here.npz', workers=1, progress=False)
    killed, finished = [], threading.Event()

    def kill_one():
        while not finished.is_set():
            with contextlib.suppress(FileNotFoundError):
                if partial.read_bytes().count(b'\n') >= 5:
                    worker = next(iter(cluster.workers.values()))
                    killed.append(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
                    return
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        summary = run(photos[::-1], tmp_path / 'dask.npz', scheduler=cluster.scheduler_address, progress=False)
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1
    assert (summary.resumed, list(summary.skipped)) == (0, ['bad.jpg'])
    assert (tmp_path / 'dask.npz').read_bytes() == (tmp_path / 'here.npz').read_bytes()
    assert not partial.exists()


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_an_item_that_kills_its_workers_is_named(cluster):
    killer = '__import__("os").kill(__import__("os").getpid(), 9)'
    with pytest.raises(InputError, match='given up after several workers died of it'):
        list(map_on_dask(eval, [killer], cluster.scheduler_address))
