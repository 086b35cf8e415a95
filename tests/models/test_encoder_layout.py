import random

import pytest
import torch
from mmdet.models import FPN, ResNet
from torch import nn

from ccop_mm.models.encoder_layout import EncoderLayout, find_untrained, inspect_encoder
from ccop_mm.utils.encoder_graph import EncoderGraph
from ccop_mm.utils.errors import InputError


def resnet(**changes):
    return ResNet(**{**dict(depth=18, base_channels=4, norm_eval=False), **changes})


def fpn(**changes):
    return FPN(**{**dict(in_channels=[4, 8, 16, 32], out_channels=6, num_outs=4), **changes})


RETINANET = dict(start_level=1, add_extra_convs='on_output', num_outs=5)


@pytest.mark.parametrize(
    'neck, strides',
    [({}, (4, 8, 16, 32)), (dict(num_outs=5), (4, 8, 16, 32, 64)), (RETINANET, (8, 16, 32, 64, 128))],
)
def test_layout_of_an_fpn(neck, strides):
    assert inspect_encoder(resnet(), fpn(**neck)) == EncoderLayout(strides, (6,) * len(strides), 32)


class Necks(nn.Module):
    """Returns the levels given by (side, channels)."""

    def __init__(self, *levels, count=1):
        super().__init__()
        self.levels = levels

    def forward(self, features):
        return [torch.zeros(1, channels, *size) for size, channels in self.levels]


def test_order_and_channels_are_those_of_the_neck():
    layout = inspect_encoder(resnet(), Necks(((4, 4), 512), ((8, 8), 256), ((16, 16), 128)))
    assert (layout.strides, layout.channels) == ((32, 16, 8), (512, 256, 128))
    assert layout.level_channels((8, 32)) == (128, 512)
    assert layout.object_channels((8,)) == 128 and layout.object_channels((8, 16)) == 256


@pytest.mark.parametrize(
    'view_size, pooled',
    [
        (None, (4, 8, 16, 32)),
        (640, (4, 8, 16, 32, 64, 128)),
        (160, (4, 8, 16, 32)),
        (159, (4, 8, 16)),
        (20, (4,)),
    ],
)
def test_pooled_strides_leave_5_cells_of_a_view(view_size, pooled):
    layout = EncoderLayout((128, 64, 32, 16, 8, 4), (1,) * 6, 1)
    assert layout.pooled_strides(view_size) == pooled
    assert view_size is None or all(view_size / stride >= 5 for stride in pooled)


def test_views_that_are_too_small_for_every_level():
    with pytest.raises(InputError, match=r'19 px.*at least 20 px'):
        EncoderLayout((4, 8), (1, 1), 1).pooled_strides(19)


def test_unknown_stride():
    with pytest.raises(InputError, match=r'64.*4, 8'):
        EncoderLayout((4, 8), (1, 1), 1).level_channels((8, 64))


@pytest.mark.parametrize(
    'neck, match',
    [
        (Necks(((4, 4), 8)), 'one level'),
        (Necks(((16, 16), 8), ((7, 7), 8)), 'output 1.*7 x 7'),
        (Necks(((16, 16), 8), ((8, 4), 8)), 'output 1.*8 x 4'),
        (Necks(((16,), 8), ((8,), 8)), 'Necks'),
        (nn.Conv2d(3, 3, 1), 'Conv2d'),
        (fpn(in_channels=[4, 8, 16, 64]), 'FPN'),
    ],
)
def test_unsuitable_necks(neck, match):
    with pytest.raises(InputError, match=match) as caught:
        inspect_encoder(resnet(), neck)
    assert '\n' not in str(caught.value)


def test_backbone_with_a_single_map():
    with pytest.raises(InputError, match='Conv2d'):
        inspect_encoder(nn.Conv2d(3, 8, 1), fpn())


def changed_by_training(backbone, neck, strides, image):
    """The keys of the parameters that one step of plain gradient descent changes, and of running statistics."""
    backbone.train(), neck.train()
    parts = nn.ModuleDict(dict(backbone=backbone, neck=neck)).requires_grad_(True)
    before = {name: value.clone() for name, value in parts.state_dict().items()}
    features = backbone(image)
    pyramid = neck(features)
    used = [level for level in pyramid if image.shape[-1] // level.shape[-1] in strides]
    sum((level * torch.randn_like(level)).sum() for level in [*used, features[-1]]).backward()
    with torch.no_grad():
        for value in parts.parameters():
            if value.grad is not None:
                value -= value.grad
    return {name for name, value in parts.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    'neck, strides, untrained',
    [
        ({}, (4, 8, 16, 32), set()),
        ({}, (4, 8, 16), {'fpn_convs.3'}),
        (RETINANET, (8, 16, 32), {'fpn_convs.3', 'fpn_convs.4'}),
        (RETINANET, (8, 16), {'fpn_convs.2', 'fpn_convs.3', 'fpn_convs.4'}),
        (dict(RETINANET, add_extra_convs='on_input'), (8, 16, 32), {'fpn_convs.3', 'fpn_convs.4'}),
        (dict(RETINANET, norm_cfg=dict(type='BN')), (8, 16, 32), {'fpn_convs.3', 'fpn_convs.4'}),
    ],
)
def test_untrained_tensors_are_those_that_no_gradient_reaches(generator, neck, strides, untrained):
    backbone, neck = resnet(), fpn(**neck)
    found = find_untrained(EncoderGraph(backbone, neck), strides)
    assert {name.removeprefix('neck.').rsplit('.', 2)[0] for name in found} == untrained
    image = torch.randn(2, 3, 128, 128, generator=generator)
    changed = changed_by_training(backbone, neck, strides, image)
    parameters = {f'backbone.{name}' for name, _ in backbone.named_parameters()}
    parameters |= {f'neck.{name}' for name, _ in neck.named_parameters()}
    assert changed == parameters - set(found)
    has_norm = any('running_mean' in name for name in neck.state_dict())
    assert any('running_mean' in name for name in found) == (has_norm and bool(untrained))


def test_unused_part_of_a_backbone():
    backbone = resnet()
    backbone.classifier = nn.Linear(4, 2)
    assert find_untrained(EncoderGraph(backbone, fpn()), (4, 8, 16, 32)) == (
        'backbone.classifier.weight',
        'backbone.classifier.bias',
    )


@pytest.mark.parametrize('strides', [(4, 8, 16, 32), (4, 8)])
def test_nothing_else_is_changed(strides):
    """Frozen parameters count as trained: whether they are is the user's choice."""
    backbone, neck = resnet(frozen_stages=1, norm_eval=True), fpn(norm_cfg=dict(type='BN'))
    backbone.train(), neck.train()
    modules = nn.ModuleList([backbone, neck])
    state = {name: value.clone() for name, value in modules.state_dict().items()}
    flags = [value.requires_grad for value in modules.parameters()]
    modes = [module.training for module in modules.modules()]
    assert len(set(flags)) == 2 and len(set(modes)) == 2
    generators = torch.get_rng_state(), random.getstate()
    inspect_encoder(backbone, neck)
    assert not any(name.startswith('backbone.layer1') for name in find_untrained(EncoderGraph(backbone, neck), strides))
    assert flags == [value.requires_grad for value in modules.parameters()]
    assert modes == [module.training for module in modules.modules()]
    assert all(value.grad is None for value in modules.parameters())
    assert all(torch.equal(value, state[name]) for name, value in modules.state_dict().items())
    assert torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()


def test_modes_return_after_an_error():
    backbone, neck = resnet(norm_eval=True), fpn(in_channels=[4, 8, 16, 64]).eval()
    backbone.train()
    modes = [part.training for module in (backbone, neck) for part in module.modules()]
    with pytest.raises(InputError):
        EncoderGraph(backbone, neck)
    assert modes == [part.training for module in (backbone, neck) for part in module.modules()]


def test_models_on_the_meta_device():
    with torch.device('meta'):
        backbone, neck = resnet(), fpn(**RETINANET)
    assert inspect_encoder(backbone, neck).strides == (8, 16, 32, 64, 128)
    assert {name.split('.')[2] for name in find_untrained(EncoderGraph(backbone, neck), (8, 16, 32))} == {'3', '4'}


def test_activation_checkpointing_does_not_hide_parameters():
    assert find_untrained(EncoderGraph(resnet(with_cp=True), fpn()), (4, 8, 16, 32)) == ()
