"""Cost of a training step: no host-device synchronization, no unused work, reduced precision and compilation."""

import contextlib
import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import InstanceData
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccop_mm.engine import CompileHook


def build(**changes):
    norm = dict(type='BN')
    return MODELS.build(
        {
            'type': 'mmselfsup.CCOP',
            'backbone': dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1),
            'neck': dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=norm),
            'image_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=64, hid_channels=32),
            'object_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=16 * 49, hid_channels=32),
            'queue_len': 64,
            **changes,
        }
    ).train()


REFERENCE = dict(
    intra_loss=dict(type='mmselfsup.IntraImageLoss', mode='triplet'),
    box_jitter=dict(type='mmselfsup.SCSBoxJitter', redraw=False, include_original=True, anchor='center'),
)


def batch_of(counts, generator, device='cpu', size=96):
    samples = []
    for count in counts:
        top_left = torch.rand(2, count, 2, generator=generator) * (size - 40)
        boxes = torch.cat([top_left, top_left + torch.rand(2, count, 2, generator=generator) * 28 + 12], dim=2)
        samples.append(SelfSupDataSample())
        samples[-1].pseudo_label = InstanceData(boxes_q=boxes[0], boxes_k=boxes[1])
    return [torch.randn(len(counts), 3, size, size, generator=generator).to(device) for _ in range(2)], samples


def total(losses):
    return sum(value for name, value in losses.items() if 'loss' in name)


class Pool(nn.Module):
    """Replaces mmcv's RoIAlign, which does not support the meta device."""

    def forward(self, level, rois):
        return level.mean(dim=(2, 3))[:1, :, None, None].expand(len(rois), -1, 7, 7)


class Copies(TorchDispatchMode):
    """Records the copies from the host to the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = [[leaf.device.type for leaf in tree_leaves(part) if torch.is_tensor(leaf)] for part in (args, result)]
        if 'cpu' in devices[0] and 'meta' in devices[1]:
            self.found.append(function)
        return result


@pytest.fixture
def meta_model(monkeypatch):
    """CCOP on the meta device, whose tensors have no values: an operation that needs one, as a sync does, fails."""
    monkeypatch.setattr(
        torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext()
    )  # autocast does not support it

    def make(**changes):
        model = build(**changes)
        model.object_pool.layers = nn.ModuleList(Pool() for _ in model.object_pool.layers)
        return model.to('meta')

    return make


@pytest.mark.parametrize('changes', [{}, REFERENCE], ids=['paper', 'reference'])
@pytest.mark.parametrize('counts', [[2, 0, 3, 1], [0, 0, 0, 0]])
def test_step_does_not_synchronize_with_the_device(meta_model, changes, counts, generator):
    model = meta_model(**changes)
    views, samples = batch_of(counts, generator, 'meta')
    for _ in range(2):  # the first step copies the key encoder, the second updates it
        with Copies() as copies:
            total(model.loss(views, samples)).backward()
        assert copies.found == [torch.ops.aten._to_copy.default], 'all boxes and indices are moved in one copy'
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    'ask',
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
    ],
    ids=['item', 'tolist', 'nonzero', 'mask', 'branch', 'cpu'],
)
def test_synchronization_is_detected(meta_model, ask, generator):
    model = meta_model()
    forward = model.image_head.forward
    model.image_head.forward = lambda query, *args: (ask(query), forward(query, *args))[1]
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.loss(*batch_of([2, 1], generator, 'meta'))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('changes', [{}, REFERENCE], ids=['paper', 'reference'])
def test_step_does_not_synchronize_with_the_gpu(changes, generator):
    model = build(**changes).cuda()
    batches = [batch_of([2, 0, 3, 1], generator, 'cuda') for _ in range(2)]
    total(model.loss(*batches[0])).backward()  # selects kernels and allocates memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        total(model.loss(*batches[1])).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_only_valid_candidates_are_embedded_and_originals_once(generator):
    model = build(**REFERENCE)
    rows, valid = {}, []
    for name, projector in (('query', model.object_projector), ('key', model.encoder_k.object_projector)):
        projector.register_forward_pre_hook(lambda _, args, name=name: rows.update({name: len(args[0])}))
    jitter = model.box_jitter.jitter

    def spy(*args):
        candidates, found = jitter(*args)
        valid.append(found)
        return candidates, found

    model.box_jitter.jitter = spy
    model.loss(*batch_of([2, 0, 3, 1], generator))
    assert valid[0].shape == (6, 11) and not valid[0].all()
    assert rows == {'query': 6, 'key': int(valid[0].sum())}


@pytest.mark.slow
def test_fast_path_equals_plain_path_in_float64(plain_run):
    """Total losses of 50 steps in float64, where memory layout and compilation cause rounding differences only."""
    torch.testing.assert_close(fifty_steps(torch.float64, fast=True), plain_run(torch.float64)[0], rtol=1e-10, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize('half, tolerance', [(False, 1e-5), (True, 0.01)], ids=['fp32', 'bf16'])
def test_fast_path_losses_are_close_to_plain_losses(plain_run, half, tolerance):
    """Total losses at 50 steps, each computed from the plain run's weights and queues.

    Trained from its own weights, the fast path may select another hardest candidate, and a network this small amplifies
    the difference. (The test above compares gradients: they produce its weights.)
    """
    losses, states = plain_run(torch.float32)
    torch.testing.assert_close(
        fifty_steps(torch.float32, half, fast=True, states=states), losses, rtol=tolerance, atol=0
    )


@pytest.mark.slow
def test_bf16_trains_like_float32(plain_run):
    """Total losses of 50 steps, each path with its own weights: the means differ by less than 3 %."""
    difference = fifty_steps(torch.float32, half=True, fast=True) / plain_run(torch.float32)[0] - 1
    assert difference.mean().abs() < 0.03


@pytest.fixture(scope='module')
def plain_run():
    """Function that runs the plain path in a dtype; returns losses and the model's state before each step."""

    @functools.cache
    def run(dtype):
        states = []
        return fifty_steps(dtype, record=states), states

    return run


def fifty_steps(dtype, half=False, fast=False, record=None, states=()):
    """Total losses ``(50,)`` of CCOP with seed 0 on five alternating batches, from ``states`` if there are any."""
    generator = torch.Generator().manual_seed(0)
    batches = [batch_of([2, 3, 0, 1, 4, 2, 3, 2], generator, size=64) for _ in range(5)]
    torch.manual_seed(0)
    model = build(channels_last=fast, queue_len=256).to(dtype)
    if fast:
        CompileHook(backend='aot_eager').before_train(SimpleNamespace(model=model))
    # The recipe's learning rate, scaled to a batch of 8.
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    found = []
    for step in range(50):
        views, samples = batches[step % len(batches)]
        if record is not None:
            record.append(copy.deepcopy(model.state_dict()))
        if states:
            model.load_state_dict(states[step])
        torch.manual_seed(step)  # seed of the jitter
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = total(model.loss([view.to(dtype) for view in views], samples))
        if not states:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)
