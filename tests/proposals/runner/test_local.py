"""Parallel map over local processes.

Functions and items are builtins, because worker processes cannot import a test file.
"""

import operator
import os

import pytest

from ccop_mm.proposals.runner.local import map_unordered
from ccop_mm.utils.errors import InputError


@pytest.mark.parametrize('workers', [1, 2, 3])
@pytest.mark.parametrize('count', [0, 1, 40])
def test_every_item_is_processed_once(workers, count):
    results = list(map_unordered(operator.neg, list(range(count)), workers))
    assert sorted(results) == sorted(-i for i in range(count))


def test_workers_are_processes_with_one_opencv_thread():
    items = ['__import__("os").getpid()', '__import__("cv2").getNumThreads()']
    pid, threads = sorted(map_unordered(eval, items, 2), reverse=True)
    assert pid != os.getpid()
    assert threads == 1


def test_few_items_are_submitted_at_a_time():
    submitted = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                submitted.append(item)
                yield item

    results = map_unordered(operator.neg, Items(range(100)), 2)
    next(results)
    assert len(submitted) <= 4
    results.close()


def test_dead_worker_is_reported_with_its_items():
    with pytest.raises(InputError, match='41, 42') as caught:
        list(map_unordered(os._exit, [41, 42], 2))
    assert '\n' not in str(caught.value)


def test_zero_workers_are_rejected():
    with pytest.raises(InputError, match='workers .*0'):
        list(map_unordered(operator.neg, [1], 0))


def test_exception_of_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_unordered(eval, ['1', '1/0', '2'], 2))
