import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from ccop_mm.models import MomentumEncoder


def parts():
    return {'body': nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 'tip': nn.Linear(4, 2)}


def disturb(modules, generator):
    with torch.no_grad():
        for module in modules.values():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))


def test_first_update_copies_later_ones_follow_equation_2(generator):
    query = parts()
    encoder = MomentumEncoder(query, momentum=0.9)
    disturb(query, generator)
    encoder.update(query)
    expected = {key: value.clone() for key, value in nn.ModuleDict(query).state_dict().items()}
    for _ in range(3):
        for name, value in encoder.state_dict().items():
            if name != '_extra_state':
                torch.testing.assert_close(value, expected[name])
        disturb(query, generator)
        encoder.update(query)
        names = [name for name, _ in nn.ModuleDict(query).named_parameters()]
        for name, value in nn.ModuleDict(query).state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in names else value.clone()


def test_follows_like_mmengine_from_the_second_step_on(generator):
    query = parts()
    encoder = MomentumEncoder(query, momentum=0.99)
    peer = ExponentialMovingAverage(nn.ModuleDict(query), momentum=0.01)
    for _ in range(4):
        disturb(query, generator)
        encoder.update(query)
        peer.update_parameters(nn.ModuleDict(query))
    for name, value in peer.module.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_keeps_the_key_weights(generator):
    query = parts()
    encoder = MomentumEncoder(query, momentum=0.5)
    for _ in range(2):
        disturb(query, generator)
        encoder.update(query)
    resumed = MomentumEncoder(copy.deepcopy(query), momentum=0.5)
    resumed.load_state_dict(encoder.state_dict())
    assert resumed.steps == 2
    disturb(query, generator)
    encoder.update(query)
    resumed.update(query)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_keys_have_no_gradient():
    assert not any(parameter.requires_grad for parameter in MomentumEncoder(parts()).parameters())


def test_momentum_must_be_a_share():
    with pytest.raises(ValueError, match=r'momentum must lie in \[0, 1\]'):
        MomentumEncoder(parts(), momentum=1.5)
