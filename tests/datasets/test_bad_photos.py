import pytest
import torch

from ccop_mm.datasets.bad_photos import BadPhotoRecord
from ccop_mm.errors import InputError
from ccop_mm.proposals.sources import BadPhoto

REASON = BadPhoto('the file is empty')


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    logged = []
    monkeypatch.setattr('ccop_mm.datasets.bad_photos.print_log', lambda line, *args: logged.append(line))
    return logged


def test_one_line_for_each_bad_photo(lines):
    record = BadPhotoRecord(1000, 0.01)
    for index in (3, 3, 7, 3):
        record.bad(index, f'{index}.jpg', REASON)
    assert [line.split(':')[0] for line in lines] == [
        'another photo replaces 3.jpg (bad ones so far',
        'another photo replaces 7.jpg (bad ones so far',
    ]
    assert record.num_bad == 2


def test_ends_above_the_share_of_what_was_tried(lines):
    record = BadPhotoRecord(1000, 0.01)
    for index in range(990):
        record.good(index)
    for index in range(10):
        record.bad(index, 'x', REASON)  # 10 of 990: above the share, but no more than 1 % of all
    with pytest.raises(InputError, match=r'11 of the 990 photos tried so far .* max_bad_share \(0.01 now\)'):
        record.bad(10, 'x', REASON)


def test_a_rank_that_sees_a_part_ends_by_its_part(lines, monkeypatch):
    monkeypatch.setattr('ccop_mm.datasets.bad_photos.get_world_size', lambda: 10)
    record = BadPhotoRecord(1000, 0.01)
    for index in range(50):
        record.good(100 + index)
    record.bad(0, 'x', REASON)
    with pytest.raises(InputError, match='2 of the 52 photos'):
        record.bad(1, 'x', REASON)
    # In the long run a rank sees all photos: as many bad ones are fine if enough were good.
    record = BadPhotoRecord(1000, 0.01)
    for index in range(1000):
        record.good(index)
    for index in range(10):
        record.bad(index, 'x', REASON)


def test_one_bad_photo_of_few_does_not_end_the_run(lines):
    record = BadPhotoRecord(5, 0.01)
    record.bad(0, 'x', REASON)
    with pytest.raises(InputError, match='2 of the 2'):
        record.bad(1, 'y', REASON)


def test_all_bad_ends_whatever_the_share(lines):
    record = BadPhotoRecord(2, 1.0)
    record.bad(0, 'x', REASON)
    with pytest.raises(InputError):
        record.bad(1, 'y', REASON)


def report(rank, record):
    record.bad(rank, f'{rank}.jpg', REASON)
    record.good(9 - rank)


def test_workers_share_the_marks():
    record = BadPhotoRecord(10, 1.0)
    torch.multiprocessing.start_processes(report, (record,), nprocs=2, start_method='fork')
    assert record.num_bad == 2
    assert (record._marks == torch.tensor([2, 2, 0, 0, 0, 0, 0, 0, 1, 1])).all()
