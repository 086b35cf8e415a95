"""Small detectors, built from mmdet's own config files."""

import copy
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'

RESNET = dict(depth=18, base_channels=8, norm_cfg=dict(type='BN'), norm_eval=False, frozen_stages=-1)
RESNET_FPN = dict(backbone=RESNET, neck=dict(in_channels=[8, 16, 32, 64], out_channels=16))
TWO_STAGE = {
    'rpn_head.in_channels': 16,
    'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16,
    'roi_head.bbox_head.in_channels': 16,
    'roi_head.bbox_head.fc_out_channels': 16,
}
ONE_STAGE = {'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16, 'bbox_head.stacked_convs': 1}
MASK = {'roi_head.mask_roi_extractor.out_channels': 16, 'roi_head.mask_head.in_channels': 16}


def hrnet_stages():
    """Returns settings of a narrow HRNet with one module per stage."""
    channels = [4, 8, 16, 32]
    stages = dict(stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(4,)))
    for number in (2, 3, 4):
        stages[f'stage{number}'] = dict(
            num_modules=1,
            num_branches=number,
            block='BASIC',
            num_blocks=(1,) * number,
            num_channels=tuple(channels[:number]),
        )
    return stages


#: Name -> config file of mmdet, and settings that make the model small.
DETECTORS = {
    'faster-rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', {**RESNET_FPN, **TWO_STAGE}),
    'retinanet': ('retinanet/retinanet_r50_fpn_1x_coco.py', {**RESNET_FPN, **ONE_STAGE}),
    'libra-rcnn': (
        'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
        {
            'backbone': RESNET,
            'neck.0.in_channels': [8, 16, 32, 64],
            'neck.0.out_channels': 16,
            'neck.1.in_channels': 16,
            **TWO_STAGE,
        },
    ),
    'swin': (
        'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        {
            'backbone.embed_dims': 24,
            'backbone.depths': [2, 2, 2, 2],
            'neck': dict(in_channels=[24, 48, 96, 192], out_channels=16),
            **TWO_STAGE,
            **MASK,
        },
    ),
    'pvt': (
        'pvt/retinanet_pvt-t_fpn_1x_coco.py',
        {
            'backbone.embed_dims': 16,
            'backbone.num_layers': [1, 1, 1, 1],
            'neck': dict(in_channels=[16, 32, 80, 128], out_channels=16),
            **ONE_STAGE,
        },
    ),
    'hrnet': (
        'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py',
        {
            'backbone.extra': hrnet_stages(),
            'neck': dict(in_channels=[4, 8, 16, 32], out_channels=16),
            **TWO_STAGE,
        },
    ),
    'rtmdet': (
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        {
            'backbone.widen_factor': 0.125,
            'backbone.norm_cfg.type': 'BN',
            'neck': dict(in_channels=[32, 64, 128], out_channels=32, norm_cfg=dict(type='BN')),
            'bbox_head.in_channels': 32,
            'bbox_head.feat_channels': 32,
            'bbox_head.norm_cfg.type': 'BN',
        },
    ),
    'yolox': (
        'yolox/yolox_tiny_8xb8-300e_coco.py',
        {
            'backbone.widen_factor': 0.125,
            'neck': dict(in_channels=[32, 64, 128], out_channels=32),
            'bbox_head.in_channels': 32,
            'bbox_head.feat_channels': 32,
        },
    ),
    'yolov3': (
        'yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py',
        {
            'backbone.widen_factor': 0.25,
            'neck': dict(in_channels=[80, 24, 8], out_channels=[24, 24, 24]),
            'bbox_head': dict(in_channels=[24, 24, 24], out_channels=[24, 24, 24]),
        },
    ),
    'convnext': (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {
            'backbone': dict(
                _delete_=True,
                type='mmcls.ConvNeXt',
                arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64]),
                out_indices=[0, 1, 2, 3],
                gap_before_final_norm=False,
            ),
            'neck': dict(in_channels=[8, 16, 32, 64], out_channels=16),
            **TWO_STAGE,
        },
    ),
    'deformable-detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        {
            'backbone': RESNET,
            'neck.in_channels': [16, 32, 64],
            'encoder.num_layers': 1,
            'decoder.num_layers': 1,
        },
    ),
}


@pytest.fixture
def detector_config():
    """Returns the model config of a small detector, with further settings."""

    def config(name, **settings):
        file, small = DETECTORS[name]
        cfg = Config(dict(model=Config.fromfile(MMDET_CONFIGS / file).model))
        cfg.merge_from_dict({f'model.{key}': value for key, value in small.items()})
        cfg.merge_from_dict({f'model.{key}': value for key, value in settings.items()})
        return copy.deepcopy(cfg.model)

    return config


@pytest.fixture
def make_encoder(detector_config):
    """Builds the backbone and the neck of a small detector with random weights and statistics of norm layers."""

    def make(name, **settings):
        model = detector_config(name, **settings)
        with DefaultScope.overwrite_default_scope('mmdet'):
            encoder = nn.ModuleDict({part: MODELS.build(model[part]) for part in ('backbone', 'neck')})
        generator = torch.Generator().manual_seed(1)
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 - 0.05)
        for key, tensor in encoder.state_dict().items():
            if key.endswith('running_var'):
                tensor.abs_().add_(0.5)
        return encoder.eval()

    return make
