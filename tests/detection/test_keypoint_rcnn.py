"""Tests of the complete detector and its configs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from ccop_mm.compat import prepare_config
from ccop_mm.detection import KeypointRCNN
from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.weights.key_mapping import shapes
from ccop_mm.weights.pairing import pair_keys

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FOLDER = CONFIGS / 'transfer/keypoint_rcnn'
INIT_CFGS = {
    'ccop-800e': dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'),
    'mocov2': dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'),
    'imagenet-sup': dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'),
    'random': None,
}


def transfer_config(init):
    return Config.fromfile(FOLDER / f'keypoint-rcnn_r50-fpn_{init}_2x_coco.py')


def build_on_meta(model):
    with torch.device('meta'):
        return MODELS.build(dict(model, init_cfg=None))


@pytest.mark.parametrize('init', INIT_CFGS)
def test_transfer_configs_differ_only_in_init_cfg(init):
    cfg, other = transfer_config(init), transfer_config('random')
    assert cfg.model.pop('init_cfg') == INIT_CFGS[init]
    assert other.model.pop('init_cfg') is None
    assert cfg.to_dict() == other.to_dict()
    assert cfg.model.backbone.init_cfg is None


def test_transfer_config_matches_the_paper():
    cfg = transfer_config('ccop-800e')
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=180000, val_interval=10000)
    warmup, steps = cfg.param_scheduler
    assert (warmup.begin, warmup.end, warmup.by_epoch) == (0, 1000, False)
    assert (steps.milestones, steps.gamma, steps.by_epoch) == ([120000, 160000], 0.1, False)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
    assert cfg.model.train_cfg.rpn_proposal.max_per_img == 1500
    assert cfg.model.roi_head.bbox_head.loss_bbox == dict(type='SmoothL1Loss', beta=0.5)
    assert cfg.train_dataloader.dataset.filter_cfg.min_keypoints == 1
    (resize,) = [step for step in cfg.train_dataloader.dataset.pipeline if 'Resize' in step.type]
    assert resize.scales == [(1333, short) for short in (640, 672, 704, 736, 768, 800)]


def test_pretrained_weights_fit_and_all_parameters_train():
    detector = build_on_meta(transfer_config('ccop-800e').model).train()
    pretraining = Config.fromfile(CONFIGS / 'ccop/ccop_r50_fpn_800e_coco.py').model
    pretraining.update(queue_len=8, object_queue_len=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        source = build_on_meta(pretraining)
    pairing = pair_keys(shapes(detector.state_dict()), shapes(source.state_dict()), lambda missing: missing)
    assert len(pairing.sources) > 300
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 53 + 8 and all(isinstance(norm, torch.nn.SyncBatchNorm) and norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    groups = build_optim_wrapper(detector, transfer_config('random').optim_wrapper).optimizer.param_groups
    assert sum(group['weight_decay'] == 0 for group in groups) == 2 * len(norms)


def test_number_of_parameters_matches_torchvision():
    pytest.importorskip('torchvision')
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    with torch.device('meta'):
        theirs = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    ours = build_on_meta(Config.fromfile(CONFIGS / '_base_/keypoint-rcnn_r50_fpn.py').model)
    assert isinstance(ours, KeypointRCNN)
    # torchvision also regresses a box for the background: 4 outputs with 1,024 weights and a bias each.
    expected = sum(parameter.numel() for parameter in theirs.parameters()) - 4 * 1025
    assert sum(parameter.numel() for parameter in ours.parameters()) == expected


@pytest.fixture
def small_demo(kites, kite_metainfo, tmp_path, monkeypatch):
    """Returns the demo config on the kites dataset, with two iterations."""
    monkeypatch.setattr(Config, 'pretty_text', '')  # mmengine formats the config four times, which takes seconds
    cfg = Config.fromfile(FOLDER / 'keypoint-rcnn_r18-fpn_demo.py')
    options = {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'param_scheduler.1.end': 2,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline.2.scale': (96, 96),
        'val_dataloader.dataset.pipeline.1.scale': (96, 96),
        'model.roi_head.bbox_head.num_classes': 2,
        'model.roi_head.keypoint_head.num_keypoints': 4,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 3,
        'val_evaluator.ann_file': str(kites),
        'visualizer.name': str(tmp_path),
    }
    for part in ('train', 'val'):
        options[f'{part}_dataloader.dataset.data_root'] = ''
        options[f'{part}_dataloader.dataset.ann_file'] = str(kites)
        options[f'{part}_dataloader.dataset.data_prefix.img'] = str(kites.parent)
        options[f'{part}_dataloader.dataset.metainfo'] = kite_metainfo
    cfg.merge_from_dict(options)
    prepare_config(cfg)
    cfg.work_dir = cfg.experiment_name = str(tmp_path / 'run')
    return cfg


@pytest.mark.slow
def test_demo_config_trains_evaluates_and_runs_inference(small_demo, kites):
    runner = Runner.from_cfg(small_demo)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert {'train/loss_keypoint', 'val/coco/bbox_mAP', 'val/coco/keypoints_mAP'} <= set(scalars)
    after = runner.model.state_dict()
    assert [name for name in before if 'keypoint' in name and torch.equal(before[name], after[name])] == []
    # The checkpoint contains the skeleton, which mmdet's inferencer passes to the visualizer.
    inferencer = DetInferencer(small_demo, str(Path(small_demo.work_dir) / 'iter_2.pth'), device='cpu')
    assert inferencer.visualizer.dataset_meta['skeleton_links'] == [[0, 1], [0, 2], [1, 3], [2, 3]]
    result = inferencer(str(kites.parent / '0.png'), return_datasamples=True, no_save_vis=True)
    assert result['predictions'][0].pred_instances.keypoints.shape == (3, 4, 2)


def test_animal_config_has_a_consistent_skeleton():
    cfg = Config.fromfile(FOLDER / 'keypoint-rcnn_r18-fpn_demo-animals.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        metainfo = complete_metainfo(loader.dataset.metainfo)
        assert len(metainfo['keypoint_names']) == cfg.model.roi_head.keypoint_head.num_keypoints == 20
        assert len(metainfo['classes']) == cfg.model.roi_head.bbox_head.num_classes == 5
        mirrored = [metainfo['keypoint_names'][index] for index in metainfo['flip_indices']]
        for name, other in zip(metainfo['keypoint_names'], mirrored, strict=True):
            side, _, part = name.partition('_')
            assert other == ({'left': 'right', 'right': 'left'}[side] + f'_{part}' if part else name)


@pytest.mark.slow
def test_importing_the_package_registers_its_classes_and_ccop_mm_does_not_import_it():
    code = """
import sys
import ccop_mm
assert 'ccop_mm.detection' not in sys.modules
from mmengine.utils import import_modules_from_strings
import_modules_from_strings(['ccop_mm.detection'])
from mmdet import registry
for name, kinds in {
    'MODELS': 'KeypointRCNN KeypointRoIHead KeypointHead', 'DATASETS': 'CocoKeypointDataset',
    'METRICS': 'CocoKeypointMetric', 'TRANSFORMS': 'LoadKeypointAnnotations PackKeypointInputs',
    'VISUALIZERS': 'KeypointLocalVisualizer', 'TASK_UTILS': 'RoundedAnchorGenerator',
}.items():
    for kind in kinds.split():
        assert kind in getattr(registry, name).module_dict, kind
print('registered')
"""
    root = CONFIGS.parent
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env=dict(os.environ, PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith('registered'), done.stderr
