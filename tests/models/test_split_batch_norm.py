import pytest
import torch
from mmengine.model import initialize, revert_sync_batchnorm
from torch import nn

from ccop_mm.models.split_batch_norm import (
    SplitBatchNorm2d,
    can_split,
    deinterleave,
    interleave,
    set_groups,
)


def norm_layer(channels, generator, **settings):
    layer = nn.BatchNorm2d(channels, **settings).double()
    for tensor in [*layer.parameters(), layer.running_mean, layer.running_var]:
        tensor.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    return layer


def test_interleaving_puts_groups_in_turn():
    rows = torch.arange(12).view(6, 2)
    turned = interleave(rows, 3)
    assert turned[:, 0].tolist() == [0, 4, 8, 2, 6, 10]
    assert torch.equal(deinterleave(turned, 3), rows)


@pytest.mark.parametrize('groups, size', [(2, 2), (3, 4), (4, 1)])
@pytest.mark.parametrize('settings', [{}, dict(eps=1e-3, momentum=0.3)])
def test_split_statistics_are_those_of_a_call_for_each_group(generator, groups, size, settings):
    split, plain = (
        SplitBatchNorm2d.convert(norm_layer(5, generator, **settings)),
        nn.BatchNorm2d(5, **settings).double(),
    )
    plain.load_state_dict(split.state_dict())
    images = torch.randn(groups * size, 5, 3, 4, generator=generator, dtype=torch.float64)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    set_groups([split], groups)
    output = deinterleave(split(interleave(ours, groups)), groups)
    expected = torch.cat([plain(group) for group in theirs.split(size)])
    torch.testing.assert_close(output, expected)
    weight = torch.rand(output.shape, generator=generator, dtype=torch.float64)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name in ('weight', 'bias'):
        torch.testing.assert_close(split.get_parameter(name).grad, plain.get_parameter(name).grad)
    for name, buffer in plain.named_buffers():  # num_batches_tracked too
        torch.testing.assert_close(split.get_buffer(name), buffer)


@pytest.mark.parametrize('training, groups', [(True, 1), (False, 2)])
def test_one_group_and_evaluation_are_plain(generator, training, groups):
    plain = norm_layer(3, generator).train(training)
    split = SplitBatchNorm2d.convert(norm_layer(3, generator)).train(training)
    split.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    set_groups([split], groups)
    assert torch.equal(split(images), plain(images))
    assert torch.equal(split.running_mean, plain.running_mean)


def test_unequal_groups_are_an_error():
    split = SplitBatchNorm2d.convert(nn.Sequential(nn.BatchNorm2d(2)))
    set_groups([split], 2)
    with pytest.raises(RuntimeError, match='shape'):
        split(torch.zeros(3, 2, 4, 4))


def test_autocast_does_not_round_running_statistics(generator):
    split, plain = SplitBatchNorm2d.convert(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
    images = 100 + torch.randn(6, 4, 3, 3, generator=generator)
    set_groups([split], 3)
    with torch.autocast('cpu', torch.bfloat16):
        split(interleave(images, 3))
        for group in images.split(2):
            plain(group)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(split.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


def test_init_cfg_finds_the_layers_as_before():
    module = SplitBatchNorm2d.convert(nn.Sequential(nn.BatchNorm2d(2)))
    initialize(module, dict(type='Constant', val=0.5, layer='_BatchNorm'))
    assert module[0].weight.tolist() == [0.5, 0.5]


def test_conversion_keeps_the_state_and_leaves_other_layers():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm1d(4)))
    before = module.state_dict(keep_vars=True)
    after = SplitBatchNorm2d.convert(module).state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    names = [type(part).__name__ for part in module.modules()]
    assert names == ['Sequential', 'Conv2d', 'SplitBatchNorm2d', 'Sequential', 'SyncBatchNorm', 'BatchNorm1d']


@pytest.mark.parametrize(
    'layer, possible',
    [
        (nn.BatchNorm2d(4), True),
        (nn.GroupNorm(2, 4), True),  # takes no batch statistics
        (nn.BatchNorm1d(4), False),
        (nn.SyncBatchNorm(4), False),
        (type('SyncBatchNorm', (nn.Module,), {})(), False),  # as mmcv's, which is no _BatchNorm and needs processes
        (revert_sync_batchnorm(nn.SyncBatchNorm(4)), False),
        (nn.BatchNorm2d(4, affine=False), False),
        (nn.BatchNorm2d(4, momentum=None), False),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
    ],
)
def test_what_can_be_split(layer, possible):
    assert can_split(SplitBatchNorm2d.convert(nn.Sequential(nn.Conv2d(3, 4, 1), layer))) is possible
