import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.engine import GradientAccumulationHook

COUNTS = 4


def build_model():
    norm = dict(type='BN')
    cfg = dict(
        type='CCOP',
        backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1, norm_cfg=norm),
        neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=norm),
        image_projector=dict(type='ProjectionMLP', in_channels=64, hid_channels=32),
        object_projector=dict(type='ProjectionMLP', in_channels=16 * 49, hid_channels=32),
        queue_len=64,
        momentum=0.9,
        key_batch='none',
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        model = MODELS.build(cfg).double().train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    # Candidates that depend on the boxes alone: each iteration has its own noise, whatever the batch size.
    shifts = torch.tensor([[0.0, 0, 0, 0], [3, 2, 3, 2], [-2, 3, 4, 3]]).double()
    model.box_jitter.jitter = lambda boxes, img_shape, generator: (
        boxes[:, None] + shifts,
        torch.ones(len(boxes), len(shifts), dtype=torch.bool),
    )
    return model


def images(generator, count=16):
    """Views and samples, each with two disjoint objects: the same number of objects and pairs in all parts."""
    views = torch.randn(2, count, 3, 64, 64, generator=generator).double()
    samples = []
    for _ in range(count):
        boxes = torch.tensor([[4.0, 4, 26, 28], [34, 34, 58, 60]]).double()
        sample = SelfSupDataSample()
        offsets = torch.rand(2, 2, 4, generator=generator).double() * 4
        sample.pseudo_label = InstanceData(boxes_q=boxes + offsets[0], boxes_k=boxes + offsets[1])
        samples.append(sample)
    return views, samples


def train(model, batches, counts, max_counts=-1):
    """Trains with one iteration per batch; returns the gradients at each optimizer step and the key weights."""
    gradients, keys = [], []
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), accumulative_counts=counts)
    if max_counts > 0:
        wrapper.initialize_count_status(nn.Identity(), 0, max_counts)
    wrapper.optimizer.register_step_pre_hook(
        lambda *args: gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    )
    hook, runner = GradientAccumulationHook(), SimpleNamespace(model=model, optim_wrapper=wrapper)
    for views, samples in batches:
        hook.before_train_iter(runner, 0)
        losses = model.loss(list(views), samples)
        wrapper.update_params(sum(value for name, value in losses.items() if 'loss' in name))
        keys.append([parameter.clone() for parameter in model.encoder_k.parameters()])
    return gradients, keys


def split(batch, parts):
    views, samples = batch
    size = len(samples) // parts
    return [(views[:, start : start + size], samples[start : start + size]) for start in range(0, len(samples), size)]


def assert_equal(found, expected):
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-11)


def test_accumulated_iterations_equal_a_large_batch(generator):
    large, accumulated = build_model(), build_model()
    batches = [images(generator) for _ in range(3)]
    expected, _ = train(large, batches, 1)
    found, keys = train(accumulated, [part for batch in batches for part in split(batch, COUNTS)], COUNTS)
    assert len(found) == len(expected) == 3
    assert found[0][0].abs().max() > 1e-3
    for step in range(3):
        assert_equal(found[step], expected[step])
    assert_equal(accumulated.parameters(), large.parameters())  # includes the key encoder
    for name in ('image_queue', 'object_queue'):
        queue, reference = getattr(accumulated, name), getattr(large, name)
        assert queue.pointer == reference.pointer
        torch.testing.assert_close(queue.keys, reference.keys, rtol=0, atol=1e-9)
    # The key encoder moves in the first iteration of an optimizer step, and only there.
    moved = [not torch.equal(now[0], before[0]) for before, now in zip(keys, keys[1:], strict=False)]
    assert moved == [number % COUNTS == 0 for number in range(1, 3 * COUNTS)]
    assert accumulated.encoder_k.steps == 3 * COUNTS and large.encoder_k.steps == 3


def test_last_iterations_that_are_fewer_than_the_others_step_too(generator):
    model = build_model()
    batches = split(images(generator), COUNTS) + split(images(generator), COUNTS)[:2]
    gradients, _ = train(model, batches, COUNTS, max_counts=len(batches))
    assert len(gradients) == 2
    assert model.image_queue.pointer == 16 + 8 and model.object_queue.pointer == 2 * (16 + 8) % 64


def test_without_accumulation_nothing_changes(generator):
    batches = [images(generator, 4) for _ in range(2)]
    with_hook, without = build_model(), build_model()
    train(with_hook, batches, 1)
    wrapper = OptimWrapper(torch.optim.SGD(without.parameters(), lr=0.05, momentum=0.9))
    for views, samples in batches:
        losses = without.loss(list(views), samples)
        wrapper.update_params(sum(value for name, value in losses.items() if 'loss' in name))
    for name, value in with_hook.state_dict().items():
        assert torch.equal(value, without.state_dict()[name]), name


def test_other_models_are_ignored():
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), accumulative_counts=2)
    GradientAccumulationHook().before_train_iter(SimpleNamespace(model=nn.Linear(1, 1), optim_wrapper=wrapper), 0)


@pytest.mark.parametrize('deferred', [0, 1, 3])
def test_queue_of_a_checkpoint_has_no_collected_keys(deferred, generator):
    queue = build_model().image_queue
    before = copy.deepcopy(queue.state_dict())
    queue.deferred = True
    for _ in range(deferred):
        queue.enqueue(torch.randn(2, 128, generator=generator).double())
        assert all(torch.equal(value, before[name]) for name, value in queue.before_enqueue().items())
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())
    queue.deferred = False
    queue.enqueue(torch.randn(2, 128, generator=generator).double())
    assert queue.pointer == 2 * (deferred + 1)
    assert all(torch.equal(value, before[name]) for name, value in queue.before_enqueue().items())
