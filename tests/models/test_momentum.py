import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from ccop_mm.models import MomentumEncoder


def make_modules():
    return {'backbone': nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 'head': nn.Linear(4, 2)}


def add_noise(modules, generator):
    with torch.no_grad():
        for module in modules.values():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))


def test_first_update_copies_and_later_ones_follow_equation_2(generator):
    query = make_modules()
    encoder = MomentumEncoder(query, momentum=0.9)
    add_noise(query, generator)
    encoder.update(query)
    expected = {key: value.clone() for key, value in nn.ModuleDict(query).state_dict().items()}
    for _ in range(3):
        for name, value in encoder.state_dict().items():
            if name != '_extra_state':
                torch.testing.assert_close(value, expected[name])
        add_noise(query, generator)
        encoder.update(query)
        names = [name for name, _ in nn.ModuleDict(query).named_parameters()]
        for name, value in nn.ModuleDict(query).state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in names else value.clone()


def test_updates_equal_those_of_mmengine(generator):
    query = make_modules()
    encoder = MomentumEncoder(query, momentum=0.99)
    reference = ExponentialMovingAverage(nn.ModuleDict(query), momentum=0.01)
    for _ in range(4):
        add_noise(query, generator)
        encoder.update(query)
        reference.update_parameters(nn.ModuleDict(query))
    for name, value in reference.module.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_key_weights_are_not_overwritten_after_resuming(generator):
    query = make_modules()
    encoder = MomentumEncoder(query, momentum=0.5)
    for _ in range(2):
        add_noise(query, generator)
        encoder.update(query)
    resumed = MomentumEncoder(copy.deepcopy(query), momentum=0.5)
    resumed.load_state_dict(encoder.state_dict())
    assert resumed.steps == 2
    add_noise(query, generator)
    encoder.update(query)
    resumed.update(query)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_parameters_require_no_gradient():
    assert not any(parameter.requires_grad for parameter in MomentumEncoder(make_modules()).parameters())


def test_momentum_out_of_range_raises():
    with pytest.raises(ValueError, match=r'momentum.*1\.5'):
        MomentumEncoder(make_modules(), momentum=1.5)
