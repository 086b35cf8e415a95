from collections import deque

import pytest
import torch
import torch.nn.functional as F

from ccop_mm.models import FeatureQueue
from ccop_mm.models.queue import suggest_lengths


def test_initialized_with_unit_vectors():
    queue = FeatureQueue(length=50, channels=16)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(50))


@pytest.mark.parametrize('length', [1, 5, 8])
def test_keeps_the_last_keys_like_a_deque(length, generator):
    # Batch sizes include 0 and more than the queue length; no key may be dropped when the queue wraps around.
    queue, expected = FeatureQueue(length, channels=3), deque(maxlen=length)
    expected.extend(queue.keys.T.tolist())
    for size in [3, 0, 2, 8, 1, 19, 7, 4]:
        keys = torch.randn(size, 3, generator=generator)
        queue.enqueue(keys)
        expected.extend(keys.tolist())
        assert sorted(queue.keys.T.tolist()) == sorted(expected)
        oldest_first = queue.keys.T.roll(-queue.pointer.item(), dims=0)
        assert oldest_first.tolist() == list(expected)


@pytest.mark.parametrize('size', [0, 2, 6, 15])  # 6 wraps around, 15 is more than the queue length
def test_before_enqueue_returns_the_previous_state(size, generator):
    queue = FeatureQueue(length=6, channels=4)
    assert torch.equal(queue.before_enqueue()['keys'], queue.keys)
    queue.enqueue(torch.randn(4, 4, generator=generator))
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.enqueue(torch.randn(size, 4, generator=generator))
    restored = queue.before_enqueue()
    assert restored.keys() == before.keys() and all(torch.equal(restored[name], before[name]) for name in before)
    assert size == 0 or not torch.equal(queue.keys, before['keys'])


def test_before_enqueue_does_not_revert_loaded_keys(generator):
    queue = FeatureQueue(length=6, channels=4)
    queue.enqueue(torch.randn(3, 4, generator=generator))
    queue.load_state_dict(FeatureQueue(length=6, channels=4).state_dict())
    assert torch.equal(queue.before_enqueue()['keys'], queue.keys)


def test_length_is_loaded_from_a_checkpoint(generator):
    saved, loaded = FeatureQueue(length=9, channels=4), FeatureQueue(length=30, channels=4)
    saved.enqueue(torch.randn(5, 4, generator=generator))
    loaded.load_state_dict(saved.state_dict())
    assert len(loaded) == 9
    loaded.enqueue(torch.ones(6, 4))
    saved.enqueue(torch.ones(6, 4))
    assert torch.equal(loaded.keys, saved.keys)


def test_suggested_lengths_have_the_ratio_of_coco():
    assert suggest_lengths(118287, 12) == (65536, 65536)
    assert suggest_lengths(2000, 12) == (1108, 13297)
    assert suggest_lengths(1, 0) == (1, 1)


def test_length_must_be_positive():
    with pytest.raises(ValueError, match='length.*0'):
        FeatureQueue(length=0)


def test_queue_of_unknown_length(generator):
    queue = FeatureQueue('auto', 4)
    keys = F.normalize(torch.randn(3, 4, generator=generator), dim=1)
    with pytest.raises(ValueError, match="'auto'"):
        queue.enqueue(keys)
    queue.resize(5)
    assert len(queue) == 5 and not queue.unsized
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(5))
    queue.enqueue(keys)
    torch.testing.assert_close(queue.keys[:, :3].T, keys)
    loaded = FeatureQueue('auto', 4)
    loaded.load_state_dict(queue.state_dict())
    loaded.enqueue(keys)
    assert len(loaded) == 5 and loaded.pointer.item() == 1
