"""Several processes, and how they end.

Functions and items are builtins: worker processes cannot import a test file.
"""

import operator
import os

import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals.pool import map_unordered


@pytest.mark.parametrize('workers', [1, 2, 3])
@pytest.mark.parametrize('count', [0, 1, 40])
def test_every_item_is_done_once(workers, count):
    results = list(map_unordered(operator.neg, list(range(count)), workers))
    assert sorted(results) == sorted(-i for i in range(count))


def test_work_is_done_in_other_processes_with_one_opencv_thread():
    items = ['__import__("os").getpid()', '__import__("cv2").getNumThreads()']
    pid, threads = sorted(map_unordered(eval, items, 2), reverse=True)
    assert pid != os.getpid()
    assert threads == 1


def test_few_items_are_handed_out_at_a_time():
    handed_out = []

    class Items(list):
        def __iter__(self):
            for item in super().__iter__():
                handed_out.append(item)
                yield item

    results = map_unordered(operator.neg, Items(range(100)), 2)
    next(results)
    assert len(handed_out) <= 4
    results.close()


def test_dead_worker_is_one_line_that_names_what_it_was_at():
    with pytest.raises(InputError, match='a worker process died.* on one of 41, 42; .*fewer workers') as caught:
        list(map_unordered(os._exit, [41, 42], 2))
    assert '\n' not in str(caught.value)


def test_no_workers_are_refused():
    with pytest.raises(InputError, match='workers is 0'):
        list(map_unordered(operator.neg, [1], 0))


def test_error_of_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_unordered(eval, ['1', '1/0', '2'], 2))
