"""A small FCOS, and images that it is trained and tested on, for tests of label-efficiency studies."""

import pytest
from synthetic_scenes.scenes import write_scenes

CONFIG = """
default_scope = 'mmdet'
custom_imports = dict(imports=['ccop_mm'])
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, frozen_stages=1, norm_eval=True,
        norm_cfg=dict(type='BN', requires_grad=False),
    ),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='FCOSHead', num_classes={num_classes}, in_channels=16, feat_channels=16, stacked_convs=1,
        strides=[4, 8, 16, 32], regress_ranges=((-1, 16), (16, 32), (32, 64), (64, 1e8)), norm_cfg=None,
    ),
    test_cfg=dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root='{root}/', ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'), metainfo=dict(classes={classes}),
        filter_cfg=dict(filter_empty_gt=True, min_size=8),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root='{root}/', ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'), metainfo=dict(classes={classes}), test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
)
val_evaluator = dict(type='CocoMetric', ann_file='{root}/annotations/instances_val.json', metric='bbox')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12)
val_cfg = dict(type='ValLoop')
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[8])]
"""
NUM_TRAIN, NUM_VAL = 20, 6


def write_detector(root, classes):
    """Writes the config of the detector for some classes of the data below ``root``; returns its path."""
    path = root / 'detector.py'
    text = CONFIG.replace('{root}', str(root)).replace('{classes}', repr(tuple(classes)))
    path.write_text(text.replace('{num_classes}', str(len(classes))))
    return path


@pytest.fixture
def study_data(tmp_path):
    """Folder with ``detector.py``, ``images/`` and ``annotations/instances_{train,val}.json``."""
    root = tmp_path / 'data'
    write_scenes(root, num_train=NUM_TRAIN, num_val=NUM_VAL, size=(64, 96))
    write_detector(root, class_names(root))
    return root


def class_names(root):
    """Returns the categories of the data in their order."""
    import json

    content = json.loads((root / 'annotations/instances_train.json').read_text())
    return [category['name'] for category in content['categories']]
