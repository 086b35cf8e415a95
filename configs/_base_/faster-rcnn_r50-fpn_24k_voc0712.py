# Paper, Table 3: Faster R-CNN R50-FPN on Pascal VOC, trained on trainval 07+12 for 24,000 iterations with batch size 16,
# tested on test 07. data/VOCdevkit/ must contain VOC2007/ and VOC2012/. The configs in configs/transfer/faster_rcnn/ set the
# initial weights.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/voc0712.py',
    './transfer_schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# The paper fine-tunes with SyncBN in backbone, FPN and box head and without frozen stages. The box head is the one of
# mask-rcnn_r50-fpn_1x_coco.py.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg, num_classes=20)),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomChoiceResize', scales=[(1333, short) for short in range(480, 801, 32)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    # CocoMetric has no annotation file here and reads the ground truth from 'instances'.
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
data_root = 'data/VOCdevkit/'
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['dataset_type'],  # differs between the years
        datasets=[
            dict(
                type='VOCDataset',
                data_root=data_root,
                ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root=f'VOC{year}/'),
                # Unlike mmdet's base config, no bbox_min_size: Detectron2 also trains on boxes smaller than 32 pixels.
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=train_pipeline,
            )
            for year in (2007, 2012)
        ],
    ),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# COCO AP (IoU 0.5 to 0.95, 101 recall points); objects marked difficult are ignored. Detectron2's VOC evaluator uses the 11
# recall points of VOC 2007, so the results of the two are not comparable.
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=24000, val_interval=4000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=24000, milestones=[18000, 22000], gamma=0.1),
]
# SafeCheckpointHook deletes old checkpoints only after saving a new one (docs/design.md).
default_hooks = dict(
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=3),
    logger=dict(log_metric_by_epoch=False),  # otherwise evaluations are logged at step 0
)
log_processor = dict(by_epoch=False)

# Differences from Detectron2: objects marked difficult are ignored in training, BN statistics are not recomputed before
# testing (no precise BN), and anchors, sampling and losses are mmdet's.
