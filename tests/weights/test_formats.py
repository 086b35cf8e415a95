import pytest
import torch
from foreign_states import FOREIGN
from mmdet.models import FPN, ResNet
from small_transfer import pretraining

from ccop_mm.errors import InputError
from ccop_mm.weights.formats import from_detectron2, to_detectron2, to_mmdet


def encoder_keys(depth):
    channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    keys = []
    with torch.device('meta'):
        for norm in (None, dict(type='BN')):
            neck = FPN(channels, 64, num_outs=4, norm_cfg=norm)
            keys += [f'neck.{key}' for key in neck.state_dict()]
        return [*(f'backbone.{key}' for key in ResNet(depth).state_dict()), *keys]


@pytest.mark.parametrize('depth', [18, 50])
def test_detectron2s_names_lead_back_to_the_same(depth):
    keys = set(encoder_keys(depth))
    theirs = {to_detectron2(key) for key in keys}
    assert None not in theirs and len(theirs) == len(keys)
    assert {from_detectron2(key) for key in theirs} == keys


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ('backbone.conv1.weight', 'bottom_up.stem.conv1.weight'),
        ('backbone.bn1.running_var', 'bottom_up.stem.conv1.norm.running_var'),
        ('backbone.layer1.0.conv2.weight', 'bottom_up.res2.0.conv2.weight'),
        ('backbone.layer4.2.bn3.bias', 'bottom_up.res5.2.conv3.norm.bias'),
        ('backbone.layer2.0.downsample.0.weight', 'bottom_up.res3.0.shortcut.weight'),
        ('backbone.layer2.0.downsample.1.running_mean', 'bottom_up.res3.0.shortcut.norm.running_mean'),
        ('neck.lateral_convs.0.conv.weight', 'fpn_lateral2.weight'),
        ('neck.lateral_convs.3.bn.weight', 'fpn_lateral5.norm.weight'),
        ('neck.fpn_convs.1.conv.bias', 'fpn_output3.bias'),
    ],
)
def test_detectron2s_names_are_these(ours, theirs):
    assert (to_detectron2(ours), from_detectron2(theirs)) == (theirs, ours)


@pytest.mark.parametrize(
    'key', ['bottom_up.stem.shortcut.weight', 'bottom_up.res6.0.conv1.weight', 'top_block.p6.weight', 'roi_heads.x']
)
def test_other_parts_of_detectron2_have_no_name_here(key):
    assert from_detectron2(key) is None


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('depth', [18, 50])
def test_every_format_is_recognized_and_gives_the_query_encoders_bits(name, depth):
    state = pretraining(depth).state_dict()
    found, encoder = to_mmdet(FOREIGN[name](state))
    assert found == name
    parts = ('backbone.',) if name in ('mocov2', 'mmselfsup-moco', 'torchvision') else ('backbone.', 'neck.')
    assert set(encoder) == {key for key in state if key.startswith(parts)}
    assert all(torch.equal(tensor, state[key]) for key, tensor in encoder.items())


@pytest.mark.parametrize('name', [name for name in FOREIGN if name != 'mmdet'])
def test_a_key_that_a_format_does_not_have_is_refused(name):
    state = FOREIGN[name](pretraining(18).state_dict())
    state = {key.removeprefix('module.'): tensor for key, tensor in state.items()} | {'surprise': torch.zeros(1)}
    with pytest.raises(InputError, match=r'but 1 of its \d+ keys belong to no part of it \(first: surprise\)'):
        to_mmdet(state)


def test_files_without_counters_get_zeros():
    state = FOREIGN['torchvision'](pretraining(18).state_dict())
    old = {key: tensor for key, tensor in state.items() if not key.endswith('num_batches_tracked')}
    _, encoder = to_mmdet(old)
    counters = [tensor for key, tensor in encoder.items() if key.endswith('num_batches_tracked')]
    assert len(counters) == 20
    assert all(counter.dtype == torch.int64 and counter == 0 for counter in counters)
