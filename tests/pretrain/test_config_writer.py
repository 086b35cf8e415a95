"""The written configs: they read back as what they were written from, and contain the paper's recipe."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.registry import DefaultScope
from mmselfsup.registry import MODELS

from ccop_mm.models.encoder_layout import EncoderLayout
from ccop_mm.pretrain.config_writer import (
    LINE_LENGTH,
    ImageSource,
    format_finetuning,
    format_pretraining,
    pretraining_settings,
)
from ccop_mm.pretrain.detector_config import read_detector
from ccop_mm.pretrain.sizes import choose_sizes

PAPER_CONFIG = Path(__file__).parents[2] / 'configs' / 'ccop' / 'ccop_r50_fpn_800e_coco.py'
#: Configs with their layout and their view size, so that nothing is built.
P2_TO_P6 = EncoderLayout((4, 8, 16, 32, 64), (256,) * 5, 2048)
P3_TO_P7 = EncoderLayout((8, 16, 32, 64, 128), (256,) * 5, 2048)
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': (P2_TO_P6, (4, 8, 16, 32), 256),
    'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco': (P2_TO_P6, (4, 8, 16, 32), 256),
    'retinanet/retinanet_r50_fpn_1x_coco': (P3_TO_P7, (8, 16, 32), 256),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': (EncoderLayout((8, 16, 32), (96,) * 3, 384), (8, 16, 32), 96),
    'yolox/yolox_tiny_8xb8-300e_coco': (EncoderLayout((8, 16, 32), (96,) * 3, 384), (8, 16, 32), 96),
    'yolo/yolov3_d53_8xb8-ms-608-273e_coco': (*(EncoderLayout((32, 16, 8), (512, 256, 128), 1024), (8, 16, 32), 256),),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': (replace(P2_TO_P6, image_channels=768), (4, 8, 16, 32), 256),
    'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco': (
        *(replace(P2_TO_P6, image_channels=768), (4, 8, 16, 32), 256),
    ),
    'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco': (replace(P2_TO_P6, image_channels=144), (4, 8, 16, 32), 256),
    'dino/dino-4scale_r50_8xb2-12e_coco': (EncoderLayout((8, 16, 32, 64), (256,) * 4, 2048), (8, 16, 32), 256),
    'dyhead/atss_r50_fpn_dyhead_1x_coco': (P3_TO_P7, (8, 16, 32), 256),
}
IMAGES = ImageSource('/data/images', '/data/list.json')


def make(name, num_images=118_287, batch_size=256, batch_norm=True, init_cfg=None, **arguments):
    detector = read_detector(f'mmdet::{name}.py')
    sizes = choose_sizes(num_images, 48, batch_size, batch_norm=batch_norm, **arguments)
    settings = pretraining_settings(detector, DETECTORS[name][0], sizes, 224, IMAGES, init_cfg, 4, True)
    return detector, sizes, settings


def plain(value):
    """Replaces mmengine's containers by Python's."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(plain(item) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('name', DETECTORS)
def test_pretraining_configs_read_back(name, tmp_path):
    detector, sizes, settings = make(name)
    text = format_pretraining(settings, detector, sizes, ['views have 192 instead of 224 px: small images'])
    path = tmp_path / 'pretrain.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    settings['work_dir'] = f'{tmp_path}/pretrain'
    settings['train_dataloader']['dataset']['proposal_file'] = f'{tmp_path}/proposals.npz'
    assert plain(cfg.to_dict()) == plain(settings)
    _, strides, object_channels = DETECTORS[name]
    assert cfg.model.object_pool.strides == strides
    assert cfg.model.object_projector.in_channels == object_channels * 49
    assert max(map(len, text.splitlines())) <= LINE_LENGTH
    assert '_base_' not in text
    lines = text.splitlines()
    for change in detector.changes:
        key = change.path.rpartition('.')[2]
        (number,) = [number for number, line in enumerate(lines) if line.strip().startswith(f'{key}={change.new!r}')]
        assert f'{change.old!r} in the detector' in f'{lines[number - 1]} {lines[number]}'
    assert '# Views have 192 instead of 224 px: small images.' in text


def test_recipe_is_that_of_the_papers_config():
    """The written config does not inherit from a file of the repository, which the package does not contain."""
    _, _, settings = make('faster_rcnn/faster-rcnn_r50_fpn_1x_coco')
    ours, paper = Config(settings), Config.fromfile(PAPER_CONFIG)
    for key in ('default_hooks', 'custom_hooks', 'env_cfg', 'log_processor', 'visualizer', 'log_level', 'train_cfg'):
        if key == 'default_hooks':  # at most every 500 steps
            ours[key].checkpoint.interval, ours[key].checkpoint.max_keep_ckpts = 10, 3
        assert ours[key] == paper[key], key
    assert (ours.default_scope, ours.custom_imports.imports) == (paper.default_scope, paper.custom_imports.imports)
    assert ours.optim_wrapper == paper.optim_wrapper
    assert ours.auto_scale_lr == paper.auto_scale_lr
    assert ours.param_scheduler[1:] == paper.param_scheduler
    ours.model.pop('object_pool')
    # The detector's FPN has P6 and no norm layers.
    assert ours.model.neck.pop('num_outs') == 5 and paper.model.neck.pop('num_outs') == 4
    paper.model.neck.pop('norm_cfg')
    ours.model.data_preprocessor.pop('pad_size_divisor')
    for name, width in (('image_projector', 2048), ('object_projector', 2048)):
        assert ours.model[name].pop('hid_channels') == width  # the default
    assert ours.model.pop('object_queue_len') == ours.model.queue_len
    assert ours.model == paper.model
    loader, paper_loader = ours.train_dataloader, paper.train_dataloader
    for key in ('batch_size', 'num_workers'):
        del loader[key], paper_loader[key]
    for key in ('data_root', 'ann_file', 'data_prefix', 'proposal_file'):
        loader.dataset.pop(key, None), paper_loader.dataset.pop(key)
    assert loader == paper_loader


@pytest.mark.parametrize(
    'name',
    [
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',  # RGB
        'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco',  # BGR, not divided
        'rtmdet/rtmdet_tiny_8xb32-300e_coco',  # BGR
        'yolox/yolox_tiny_8xb8-300e_coco',  # BGR, 0 to 255, with batch augmentations
        'yolo/yolov3_d53_8xb8-ms-608-273e_coco',  # RGB, 0 to 1
    ],
)
def test_network_receives_what_it_does_in_the_detector(name):
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, _, settings = make(name)
    config = dict(type='TwoViewDataPreprocessor', **settings['model']['data_preprocessor'])
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        ours = MODELS.build(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        theirs = DETECTION_MODELS.build({**read_own(name).model.data_preprocessor, 'batch_augments': None})
    view = ours(dict(inputs=[image[None]], data_samples=None))['inputs'][0]
    expected = theirs(dict(inputs=[image], data_samples=None))['inputs']
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


def test_networks_without_batch_norm_are_trained_with_adamw():
    _, _, settings = make('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', batch_norm=False)
    wrapper = settings['optim_wrapper']
    assert wrapper['optimizer'] == dict(type='AdamW', lr=0.000707, weight_decay=0.05, fused=True)
    assert wrapper['paramwise_cfg'] == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)


def test_initial_weights_are_part_of_the_model():
    init_cfg = dict(type='EncoderPretrained', checkpoint='a.pth', prefix='backbone.')
    _, _, settings = make('rtmdet/rtmdet_tiny_8xb32-300e_coco', init_cfg=init_cfg)
    assert settings['model']['init_cfg'] == init_cfg
    assert 'init_cfg' not in make('rtmdet/rtmdet_tiny_8xb32-300e_coco')[2]['model']


def test_learning_rate_is_warm_up_times_cosine():
    """Two schedulers of mmengine over the same steps multiply their factors."""
    _, sizes, settings = make('rtmdet/rtmdet_tiny_8xb32-300e_coco', num_images=64, batch_size=16, epochs=150)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=sizes.lr)
    warmup, cosine = settings['param_scheduler']
    schedulers = [
        LinearLR(optimizer, **{key: warmup[key] for key in ('start_factor', 'begin', 'end', 'by_epoch')}),
        CosineAnnealingLR.build_iter_from_epoch(
            optimizer, T_max=cosine['T_max'], eta_min=cosine['eta_min'], epoch_length=4
        ),
    ]
    rates = []
    for _ in range(sizes.steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    steps, number = np.arange(600), sizes.warmup
    assert (sizes.steps, number) == (600, 100)
    factor = np.minimum(1e-3 + (1 - 1e-3) * steps / (number - 1), 1)
    expected = sizes.lr * factor * (1 + np.cos(np.pi * steps / 600)) / 2
    assert rates == pytest.approx(expected.tolist(), rel=1e-6)
    assert rates[-1] < 1e-4 * sizes.lr < rates[number]


@pytest.mark.parametrize(
    ('num_images', 'batch_size', 'epochs', 'interval'),
    [(118_287, 256, 800, 1), (31, 16, 2000, 200), (320, 32, 800, 50), (64, 32, 3, 1)],
)
def test_checkpoint_interval(num_images, batch_size, epochs, interval):
    _, _, settings = make(
        'rtmdet/rtmdet_tiny_8xb32-300e_coco', num_images=num_images, batch_size=batch_size, epochs=epochs
    )
    assert settings['default_hooks']['checkpoint']['interval'] == interval


@pytest.mark.parametrize('name', ['yolo/yolov3_d53_8xb8-ms-608-273e_coco', 'rtmdet/rtmdet_tiny_8xb32-300e_coco'])
def test_written_models_are_built(name):
    _, _, settings = make(name, num_images=64, batch_size=16, epochs=1)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        model = MODELS.build(settings['model'])
    views = torch.zeros(2, 3, 64, 64)
    assert [level.shape[-1] for level in model.eval().extract_feat(views)] == [8, 4, 2]


@pytest.mark.parametrize('name', DETECTORS)
def test_finetuning_configs_are_the_detectors(name, tmp_path):
    detector = read_detector(f'mmdet::{name}.py')
    path = tmp_path / 'finetune.py'
    path.write_text(format_finetuning(detector))
    cfg = Config.fromfile(path, import_custom_modules=False)
    own = read_own(name)
    assert cfg.model.init_cfg == dict(type='CCOPPretrained', checkpoint=f'{tmp_path}/weights.pth')
    assert cfg.model.backbone.get('init_cfg') is None
    for model in (cfg.model, own.model):
        model.pop('init_cfg', None), model.pop('_scope_', None)
        model.backbone.pop('init_cfg', None)
        model.backbone.type = model.backbone.type.replace('mmpretrain.', 'mmcls.')
    assert cfg.model == own.model
    for key, value in own.items():
        if key not in ('model', 'custom_imports', 'checkpoint_file'):
            assert plain(without_scope(cfg[key])) == plain(without_scope(value)), key
    assert cfg.custom_imports.imports[0] == 'ccop_mm'


def read_own(name):
    import mmdet

    folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
    return Config.fromfile(folder / f'{name}.py', import_custom_modules=False)


def without_scope(value):
    if isinstance(value, dict):
        return {key: without_scope(item) for key, item in value.items() if key != '_scope_'}
    return type(value)(map(without_scope, value)) if isinstance(value, (list, tuple)) else value


def test_checkpoint_of_the_detector_does_not_replace_the_weights():
    detector = read_detector('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert 'load_from' not in format_finetuning(detector)
    text = format_finetuning(replace(detector, load_from='coco.pth', overrides={'init_cfg': dict(_delete_=True)}))
    values = {node.targets[0].id: node.value for node in ast.parse(text).body}
    assert ast.literal_eval(values['load_from']) is None
    assert '_delete_=True' in text and 'coco.pth' in text


def test_keys_that_are_no_names(tmp_path):
    """``for`` cannot be an argument of ``dict``, and numbers are no names."""
    detector, sizes, settings = make('rtmdet/rtmdet_tiny_8xb32-300e_coco')
    odd = {
        'infinite': (float('inf'), -float('inf')),
        'for': 1,
        'a-b': [dict(x=(1,))],
        'text': 'it\'s "quoted"\\',
        'long': [dict(number=i) for i in range(20)],
    }
    settings['odd'] = odd
    path = tmp_path / 'pretrain.py'
    path.write_text(format_pretraining(settings, detector, sizes, []))
    assert plain(Config.fromfile(path).odd) == odd
