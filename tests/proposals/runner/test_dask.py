"""Parallel map over a Dask cluster of two local processes.

Functions and items are builtins, because worker processes cannot import a test file.
"""

import contextlib
import logging
import operator
import os
import re
import signal
import threading
import time

import cv2
import pytest

from ccop_mm.proposals import generate_proposals, list_images
from ccop_mm.proposals.runner import dask as runner_dask
from ccop_mm.proposals.runner.dask import map_on_dask
from ccop_mm.utils.errors import InputError

distributed = pytest.importorskip('distributed', reason='needs the package distributed')
dask = pytest.importorskip('dask')


@pytest.fixture(scope='module')
def cluster():
    with (
        # An item fails after the second worker instead of the fourth, because a new worker takes seconds to start.
        dask.config.set({'distributed.scheduler.allowed-failures': 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=':0',
            silence_logs=logging.CRITICAL,
            env={'CCOP_MM_LAZY': '1'},
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.run(__import__, 'ccop_mm.proposals.image_record')  # imports in advance, which takes seconds
        yield cluster


@pytest.mark.slow
def test_every_item_is_processed_once_by_a_worker(cluster):
    assert sorted(map_on_dask(operator.neg, list(range(40)), cluster.scheduler_address)) == list(range(-39, 1))
    assert list(map_on_dask(operator.neg, [], cluster.scheduler_address)) == []
    pids = set(map_on_dask(eval, ['__import__("os").getpid()'] * 8, cluster.scheduler_address))
    assert os.getpid() not in pids
    threads = map_on_dask(eval, ['__import__("cv2").getNumThreads()'] * 2, cluster.scheduler_address)
    assert set(threads) == {1}


def test_few_items_are_submitted_at_a_time(cluster):
    submitted = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                submitted.append(item)
                yield item

    results = map_on_dask(operator.neg, Items(range(100)), cluster.scheduler_address)
    next(results)
    assert len(submitted) <= 8
    results.close()


def test_exception_of_the_function_is_raised(cluster):
    with pytest.raises(ZeroDivisionError):
        list(map_on_dask(eval, ['1', '1/0', '2'], cluster.scheduler_address))


def test_workers_with_another_version_are_rejected(cluster, monkeypatch):
    monkeypatch.setattr(runner_dask, '__version__', '0.0')
    with pytest.raises(InputError, match=r'ccop_mm .* 0\.0 '):
        list(map_on_dask(operator.neg, [1], cluster.scheduler_address))


def test_missing_scheduler_and_missing_workers_are_reported():
    with pytest.raises(InputError, match='tcp://127.0.0.1:9') as caught:
        list(map_on_dask(operator.neg, [1], 'tcp://127.0.0.1:9', patience=1))
    assert '\n' not in str(caught.value)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=':0', silence_logs=logging.CRITICAL) as empty,
        pytest.raises(InputError, match=f'{empty.scheduler_address} .*1 s'),
    ):
        list(map_on_dask(operator.neg, [1], empty.scheduler_address, patience=1))


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_file_is_identical_if_a_worker_is_killed(cluster, tmp_path, scene):
    root, partial = tmp_path / 'images', tmp_path / 'dask.npz.partial'
    root.mkdir()
    for seed in range(30):
        cv2.imwrite(str(root / f'{seed}.png'), scene(seed))
    (root / 'bad.jpg').write_text('not an image')
    images = list_images(root)
    generate_proposals(images, tmp_path / 'local.npz', workers=1, progress=False)
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
        summary = generate_proposals(
            images[::-1], tmp_path / 'dask.npz', scheduler=cluster.scheduler_address, progress=False
        )
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1
    assert (summary.resumed, list(summary.skipped)) == (0, ['bad.jpg'])
    assert (tmp_path / 'dask.npz').read_bytes() == (tmp_path / 'local.npz').read_bytes()
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_item_that_kills_its_workers_is_named(cluster):
    killer = '__import__("os").kill(__import__("os").getpid(), 9)'
    with pytest.raises(InputError, match=re.escape(killer)):
        list(map_on_dask(eval, [killer], cluster.scheduler_address))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_item_that_kills_its_workers_is_skipped_and_all_others_done(cluster):
    killer = '__import__("os").kill(__import__("os").getpid(), 9)'
    items = ['1', killer, '2', '3']
    results = list(map_on_dask(eval, items, cluster.scheduler_address, on_killed=lambda item: f'killed by {item}'))
    assert sorted(results, key=str) == [1, 2, 3, f'killed by {killer}']
