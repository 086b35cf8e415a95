import pytest
import torch

from ccop_mm.datasets.unreadable_images import UnreadableImageTracker
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import UnreadableImageError

REASON = UnreadableImageError('the file is empty')


@pytest.fixture
def lines(monkeypatch):
    """The logged lines."""
    logged = []
    monkeypatch.setattr('ccop_mm.datasets.unreadable_images.print_log', lambda line, *args: logged.append(line))
    return logged


def test_each_unreadable_image_is_logged_once(lines):
    tracker = UnreadableImageTracker(1000, 0.01)
    for index in (3, 3, 7, 3):
        tracker.mark_unreadable(index, f'{index}.jpg', REASON)
    assert len(lines) == 2
    for line, name in zip(lines, ('3.jpg', '7.jpg'), strict=True):
        assert name in line and line.endswith(str(REASON))
    assert tracker.num_unreadable == 2


def test_stops_above_the_ratio_of_images_seen(lines):
    tracker = UnreadableImageTracker(1000, 0.01)
    for index in range(990):
        tracker.mark_readable(index)
    for index in range(10):
        tracker.mark_unreadable(index, 'x', REASON)  # 10 of 990: above the ratio, but not above 1 % of all images
    with pytest.raises(InputError, match=r'11 of the 990 .*max_unreadable_ratio=0\.01'):
        tracker.mark_unreadable(10, 'x', REASON)


def test_ratio_applies_to_the_images_of_a_rank(lines, monkeypatch):
    monkeypatch.setattr('ccop_mm.datasets.unreadable_images.get_world_size', lambda: 10)
    tracker = UnreadableImageTracker(1000, 0.01)
    for index in range(50):
        tracker.mark_readable(100 + index)
    tracker.mark_unreadable(0, 'x', REASON)
    with pytest.raises(InputError, match='2 of the 52'):
        tracker.mark_unreadable(1, 'x', REASON)
    # Over many epochs a rank sees all images: then the ratio of all of them is tolerated.
    tracker = UnreadableImageTracker(1000, 0.01)
    for index in range(1000):
        tracker.mark_readable(index)
    for index in range(10):
        tracker.mark_unreadable(index, 'x', REASON)
    assert tracker.num_unreadable == 10


def test_one_unreadable_image_of_a_small_dataset_is_tolerated(lines):
    tracker = UnreadableImageTracker(5, 0.01)
    tracker.mark_unreadable(0, 'x', REASON)
    with pytest.raises(InputError, match='2 of the 2'):
        tracker.mark_unreadable(1, 'y', REASON)


def test_stops_if_all_images_are_unreadable(lines):
    tracker = UnreadableImageTracker(2, 1.0)
    tracker.mark_unreadable(0, 'x', REASON)
    with pytest.raises(InputError, match='2 of the 2'):
        tracker.mark_unreadable(1, 'y', REASON)


def report(rank, tracker):
    tracker.mark_unreadable(rank, f'{rank}.jpg', REASON)
    tracker.mark_readable(9 - rank)


def test_workers_share_the_status():
    tracker = UnreadableImageTracker(10, 1.0)
    torch.multiprocessing.start_processes(report, (tracker,), nprocs=2, start_method='fork')
    assert tracker.num_unreadable == 2
    assert (tracker._status == torch.tensor([2, 2, 0, 0, 0, 0, 0, 0, 1, 1])).all()
