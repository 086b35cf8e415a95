import pytest
import torch
from foreign_states import STATES
from mmdet.models import FPN, ResNet
from small_transfer import pretraining

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import FOREIGN_FORMATS
from ccop_mm.weights.encoder_checkpoint import read_encoder
from ccop_mm.weights.formats import detect_foreign_format, from_detectron2, to_detectron2


def encoder_keys(depth):
    channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    keys = []
    with torch.device('meta'):
        for norm in (None, dict(type='BN')):
            neck = FPN(channels, 64, num_outs=4, norm_cfg=norm)
            keys += [f'neck.{key}' for key in neck.state_dict()]
        return [*(f'backbone.{key}' for key in ResNet(depth).state_dict()), *keys]


@pytest.fixture
def read(tmp_path):
    """Saves a state dict and reads its encoder."""

    def read(state):
        torch.save(dict(state_dict=state), tmp_path / 'foreign.pth')
        return read_encoder(tmp_path / 'foreign.pth')

    return read


@pytest.mark.parametrize('depth', [18, 50])
def test_detectron2_keys_round_trip(depth):
    keys = set(encoder_keys(depth))
    converted = {to_detectron2(key) for key in keys}
    assert None not in converted and len(converted) == len(keys)
    assert {from_detectron2(key) for key in converted} == keys


@pytest.mark.parametrize(
    ('mmdet', 'detectron2'),
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
def test_detectron2_keys(mmdet, detectron2):
    assert (to_detectron2(mmdet), from_detectron2(detectron2)) == (detectron2, mmdet)


@pytest.mark.parametrize(
    'key', ['bottom_up.stem.shortcut.weight', 'bottom_up.res6.0.conv1.weight', 'top_block.p6.weight', 'roi_heads.x']
)
def test_other_detectron2_keys_are_not_converted(key):
    assert from_detectron2(key) is None


@pytest.mark.parametrize('name', STATES)
@pytest.mark.parametrize('depth', [18, 50])
def test_each_format_is_detected_and_yields_the_query_encoder(read, name, depth):
    state = pretraining(depth).state_dict()
    encoder = read(STATES[name](state))
    assert encoder.source_format == name
    parts = (
        ('backbone.',)
        if name in ('mocov2', 'mmselfsup-moco', 'mmselfsup-siamese', 'torchvision')
        else ('backbone.', 'neck.')
    )
    assert set(encoder.tensors) == {key for key in state if key.startswith(parts)}
    assert all(torch.equal(tensor, state[key]) for key, tensor in encoder.tensors.items())


def test_every_foreign_format_is_tested():
    assert {*FOREIGN_FORMATS, 'ccop'} == set(STATES)


def test_a_ccop_checkpoint_has_no_foreign_format():
    assert detect_foreign_format(pretraining(18).state_dict()) is None


@pytest.mark.parametrize('name', FOREIGN_FORMATS)
def test_unknown_keys_are_rejected(read, name):
    state = STATES[name](pretraining(18).state_dict())
    state = {key.removeprefix('module.'): tensor for key, tensor in state.items()} | {'surprise': torch.zeros(1)}
    with pytest.raises(InputError, match=rf'\b1 of {len(state)} .*surprise'):
        read(state)


def test_missing_batch_counters_become_zero(read):
    state = STATES['torchvision'](pretraining(18).state_dict())
    without_counters = {key: tensor for key, tensor in state.items() if not key.endswith('num_batches_tracked')}
    encoder = read(without_counters).tensors
    counters = [tensor for key, tensor in encoder.items() if key.endswith('num_batches_tracked')]
    assert len(counters) == 20
    assert all(counter.dtype == torch.int64 and counter == 0 for counter in counters)
