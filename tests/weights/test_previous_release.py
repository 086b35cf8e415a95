"""Files written by the first version, before modules and the ``mmdet`` format were renamed, stay readable.

tests/data/v0.1.0/ contains a pre-training checkpoint (ResNet-18 with ``base_channels=2``, FPN with 4 channels and
without norm layers), an export of it in the format that was then called ``mmdet``, the images and proposals of the
run, and the expected values.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ccop_mm.engine import launch
from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum, convert, read_checkpoint, read_state_dict
from ccop_mm.weights.newest_checkpoint import find_newest, read_meta

DATA = Path(__file__).resolve().parents[1] / 'data' / 'v0.1.0'
CHECKPOINT = DATA / 'checkpoint.pth'
EXPORT = DATA / 'export_mmdet.safetensors'
EXPECTED = json.loads((DATA / 'expected.json').read_text())
PARTS = ('backbone.', 'neck.')


def read_encoder_state():
    """Reads backbone and FPN of the checkpoint with torch alone."""
    state = torch.load(CHECKPOINT, weights_only=True)['state_dict']
    return {key: tensor for key, tensor in state.items() if key.startswith(PARTS)}


def build_detector(checkpoint, **neck):
    """Builds and initializes a RetinaNet with the encoder of the checkpoint."""
    model = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='ResNet', depth=18, base_channels=2, norm_eval=False),
        neck=dict(type='FPN', in_channels=[2, 4, 8, 16], out_channels=4, num_outs=4, **neck),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=4,
            feat_channels=4,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[1.0],
                strides=[4, 8, 16, 32],
            ),
        ),
        init_cfg=dict(type='CCOPPretrained', checkpoint=str(checkpoint)),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
        detector.init_weights()
    return detector


def test_checkpoint_is_read():
    state = read_state_dict(CHECKPOINT)
    assert len(state) == EXPECTED['num_keys']
    assert checksum(state) == EXPECTED['checkpoint_checksum']
    encoder = {key: tensor for key, tensor in state.items() if key.startswith(PARTS)}
    assert checksum(encoder) == EXPECTED['encoder_checksum']
    assert state['encoder_k._extra_state'] == EXPECTED['momentum_steps']


@pytest.mark.parametrize('file', [CHECKPOINT, EXPORT], ids=lambda path: path.name)
def test_detector_loads_every_tensor(file):
    state, expected = build_detector(file).state_dict(), read_encoder_state()
    assert {key for key in state if key.startswith(PARTS)} == set(expected)
    for key, tensor in expected.items():
        assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor), key


def test_detector_that_starts_at_c3_loads_the_levels_from_p3():
    """The pre-trained P2 has no target, the extra convolution of the detector has no source."""
    detector, expected = build_detector(CHECKPOINT, start_level=1, add_extra_convs='on_input'), read_encoder_state()
    state = detector.state_dict()
    for key in (f'{convs}.{level}.conv.weight' for convs in ('lateral_convs', 'fpn_convs') for level in range(3)):
        convs, level, rest = key.split('.', 2)
        assert torch.equal(state[f'neck.{key}'], expected[f'neck.{convs}.{int(level) + 1}.{rest}']), key


def test_detector_with_other_norm_layers_is_an_error():
    with pytest.raises(InputError, match=r'checkpoint\.pth(?s:.*)neck\.lateral_convs\.0\.bn\.weight'):
        build_detector(CHECKPOINT, norm_cfg=dict(type='BN'))


@pytest.mark.parametrize('to', ['ccop', 'mmdet', 'torchvision', 'timm', 'detectron2'])
@pytest.mark.parametrize('file', [CHECKPOINT, EXPORT], ids=lambda path: path.name)
def test_checkpoint_and_export_are_converted(tmp_path, file, to):
    line = convert(file, to, tmp_path / 'converted.pth')
    assert 'ResNet-18' in line and 'epoch 1' in line
    convert(tmp_path / 'converted.pth', 'ccop', tmp_path / 'ccop.pth')
    state, meta = read_checkpoint(tmp_path / 'ccop.pth')
    expected = read_encoder_state()
    if to in ('torchvision', 'timm'):
        expected = {key: tensor for key, tensor in expected.items() if key.startswith('backbone.')}
    else:
        assert meta['encoder_checksum'] == EXPECTED['encoder_checksum']
    assert checksum(state) == checksum(expected) and meta['epoch'] == '1'


def test_export_states_the_former_format_name():
    assert read_checkpoint(EXPORT)[1]['names'] == 'mmdet'


def test_meta_is_read(tmp_path):
    meta = read_meta(CHECKPOINT)
    assert (meta['epoch'], meta['iter'], meta['seed']) == (1, 2, 5)
    shutil.copy(CHECKPOINT, tmp_path / 'epoch_1.pth')
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), meta)


def test_run_resumes(tmp_path):
    for name in ('0.png', '1.png', '2.png', '3.png', 'proposals.npz'):
        target = tmp_path / ('images' if name.endswith('.png') else '') / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(DATA / name, target)
    images = [
        dict(id=image_id, file_name=name)
        for image_id, name in zip(EXPECTED['image_ids'], ('3.png', '1.png', '0.png', '2.png'), strict=True)
    ]
    (tmp_path / 'images.json').write_text(json.dumps(dict(images=images)))
    (tmp_path / 'work').mkdir()
    shutil.copy(CHECKPOINT, tmp_path / 'work' / 'epoch_1.pth')
    cfg = Config.fromstring(torch.load(CHECKPOINT, weights_only=True)['meta']['cfg'], '.py')
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': 'resumed',
            'train_cfg.max_epochs': 2,
            'train_dataloader.dataset.data_root': str(tmp_path),
            'train_dataloader.dataset.ann_file': 'images.json',
            # This transform has been renamed since.
            'train_dataloader.dataset.pipeline.0.type': 'LoadUnlabeledImage',
        }
    )
    launch.set_resume(cfg, 'auto')
    runner = launch.train(cfg)
    assert runner.iter == 4 and runner.model.encoder_k.steps == EXPECTED['momentum_steps'] + 2
    resumed = torch.load(tmp_path / 'work' / 'epoch_2.pth', weights_only=True)
    assert len(resumed['message_hub']['log_scalars']['train/loss'].data[0]) == 4
    assert len(resumed['state_dict']) == EXPECTED['num_keys']
    assert not torch.equal(
        resumed['state_dict']['backbone.conv1.weight'], read_encoder_state()['backbone.conv1.weight']
    )
