from collections import deque

import pytest
import torch

from ccop_mm.models import FeatureQueue
from ccop_mm.models.queue import suggest_lengths


def test_starts_with_unit_vectors():
    queue = FeatureQueue(length=50, channels=16)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(50))


@pytest.mark.parametrize('length', [1, 5, 8])
def test_keeps_the_last_keys_like_a_deque(length, generator):
    # Batches of every size, none and more than the queue holds among them: no key may be dropped at the queue's end.
    queue, expected = FeatureQueue(length, channels=3), deque(maxlen=length)
    expected.extend(queue.keys.T.tolist())
    for size in [3, 0, 2, 8, 1, 19, 7, 4]:
        keys = torch.randn(size, 3, generator=generator)
        queue.enqueue(keys)
        expected.extend(keys.tolist())
        assert sorted(queue.keys.T.tolist()) == sorted(expected)
        oldest_first = queue.keys.T.roll(-queue.pointer.item(), dims=0)
        assert oldest_first.tolist() == list(expected)


@pytest.mark.parametrize('size', [0, 2, 6, 15])
def test_the_state_before_the_last_enqueue(size, generator):
    queue = FeatureQueue(length=6, channels=4)
    assert torch.equal(queue.before_enqueue()['keys'], queue.keys)
    queue.enqueue(torch.randn(4, 4, generator=generator))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.enqueue(torch.randn(size, 4, generator=generator))  # wraps around, or more than it holds
    found = queue.before_enqueue()
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    assert size == 0 or not torch.equal(queue.keys, before['keys'])


def test_loaded_keys_are_not_undone(generator):
    queue = FeatureQueue(length=6, channels=4)
    queue.enqueue(torch.randn(3, 4, generator=generator))
    queue.load_state_dict(FeatureQueue(length=6, channels=4).state_dict())
    assert torch.equal(queue.before_enqueue()['keys'], queue.keys)


def test_a_checkpoint_brings_its_length(generator):
    saved, fresh = FeatureQueue(length=9, channels=4), FeatureQueue(length=30, channels=4)
    saved.enqueue(torch.randn(5, 4, generator=generator))
    fresh.load_state_dict(saved.state_dict())
    assert len(fresh) == 9
    fresh.enqueue(torch.ones(6, 4))
    saved.enqueue(torch.ones(6, 4))
    assert torch.equal(fresh.keys, saved.keys)


def test_suggested_lengths_hold_cocos_share_of_an_epoch():
    assert suggest_lengths(118287, 12) == (65536, 65536)
    assert suggest_lengths(2000, 12) == (1108, 13297)
    assert suggest_lengths(1, 0) == (1, 1)


def test_length_must_be_positive():
    with pytest.raises(ValueError, match='length of at least 1'):
        FeatureQueue(length=0)
