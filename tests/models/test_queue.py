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


def test_snapshot_outlives_enqueue(generator):
    queue = FeatureQueue(length=6, channels=4)
    query = torch.randn(2, 4, generator=generator, requires_grad=True)
    snapshot = queue.snapshot()
    before = snapshot.clone()
    loss = (query @ snapshot).sum()
    queue.enqueue(torch.randn(6, 4, generator=generator))
    loss.backward()  # autograd would refuse a tensor that was changed in place
    torch.testing.assert_close(query.grad, before.sum(1).expand(2, 4))


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
