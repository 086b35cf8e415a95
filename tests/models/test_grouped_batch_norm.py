import pytest
import torch
from mmengine.model import initialize, revert_sync_batchnorm
from torch import nn

from ccop_mm.models.grouped_batch_norm import (
    GroupedBatchNorm2d,
    deinterleave,
    interleave,
    set_groups,
    supports_groups,
)


def norm_layer(channels, generator, **settings):
    layer = nn.BatchNorm2d(channels, **settings).double()
    for tensor in [*layer.parameters(), layer.running_mean, layer.running_var]:
        tensor.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    return layer


def test_interleave_alternates_groups():
    rows = torch.arange(12).view(6, 2)
    interleaved = interleave(rows, 3)
    assert interleaved[:, 0].tolist() == [0, 4, 8, 2, 6, 10]
    assert torch.equal(deinterleave(interleaved, 3), rows)


@pytest.mark.parametrize('groups, size', [(2, 2), (3, 4), (4, 1)])
@pytest.mark.parametrize('settings', [{}, dict(eps=1e-3, momentum=0.3)])
def test_grouped_statistics_equal_those_of_one_call_per_group(generator, groups, size, settings):
    grouped = GroupedBatchNorm2d.convert(norm_layer(5, generator, **settings))
    plain = nn.BatchNorm2d(5, **settings).double()
    plain.load_state_dict(grouped.state_dict())
    images = torch.randn(groups * size, 5, 3, 4, generator=generator, dtype=torch.float64)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    set_groups([grouped], groups)
    output = deinterleave(grouped(interleave(ours, groups)), groups)
    expected = torch.cat([plain(group) for group in theirs.split(size)])
    torch.testing.assert_close(output, expected)
    weight = torch.rand(output.shape, generator=generator, dtype=torch.float64)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name in ('weight', 'bias'):
        torch.testing.assert_close(grouped.get_parameter(name).grad, plain.get_parameter(name).grad)
    for name, buffer in plain.named_buffers():  # num_batches_tracked too
        torch.testing.assert_close(grouped.get_buffer(name), buffer)


@pytest.mark.parametrize('training, groups', [(True, 1), (False, 2)])
def test_one_group_and_evaluation_mode_equal_plain_batch_norm(generator, training, groups):
    plain = norm_layer(3, generator).train(training)
    grouped = GroupedBatchNorm2d.convert(norm_layer(3, generator)).train(training)
    grouped.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    set_groups([grouped], groups)
    assert torch.equal(grouped(images), plain(images))
    assert torch.equal(grouped.running_mean, plain.running_mean)


def test_unequal_groups_raise():
    grouped = GroupedBatchNorm2d.convert(nn.Sequential(nn.BatchNorm2d(2)))
    set_groups([grouped], 2)
    with pytest.raises(RuntimeError, match='shape'):
        grouped(torch.zeros(3, 2, 4, 4))


def test_running_statistics_are_float32_under_autocast(generator):
    grouped, plain = GroupedBatchNorm2d.convert(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
    images = 100 + torch.randn(6, 4, 3, 3, generator=generator)
    set_groups([grouped], 3)
    with torch.autocast('cpu', torch.bfloat16):
        grouped(interleave(images, 3))
        for group in images.split(2):
            plain(group)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(grouped.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


def test_init_cfg_matches_converted_layers():
    module = GroupedBatchNorm2d.convert(nn.Sequential(nn.BatchNorm2d(2)))
    initialize(module, dict(type='Constant', val=0.5, layer='_BatchNorm'))
    assert module[0].weight.tolist() == [0.5, 0.5]


def test_conversion_keeps_the_state_and_skips_other_layers():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm1d(4)))
    before = module.state_dict(keep_vars=True)
    after = GroupedBatchNorm2d.convert(module).state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    names = [type(part).__name__ for part in module.modules()]
    assert names == ['Sequential', 'Conv2d', 'GroupedBatchNorm2d', 'Sequential', 'SyncBatchNorm', 'BatchNorm1d']


@pytest.mark.parametrize(
    'layer, expected',
    [
        (nn.BatchNorm2d(4), True),
        (nn.GroupNorm(2, 4), True),  # has no batch statistics
        (nn.BatchNorm1d(4), False),
        (nn.SyncBatchNorm(4), False),
        (type('SyncBatchNorm', (nn.Module,), {})(), False),  # like mmcv's, which is not a _BatchNorm
        (revert_sync_batchnorm(nn.SyncBatchNorm(4)), False),
        (nn.BatchNorm2d(4, affine=False), False),
        (nn.BatchNorm2d(4, momentum=None), False),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
    ],
)
def test_supports_groups_requires_standard_layers(layer, expected):
    assert supports_groups(GroupedBatchNorm2d.convert(nn.Sequential(nn.Conv2d(3, 4, 1), layer))) is expected
