# FCOS on the backbone and the FPN of ccop_small.py, for tools/analysis_tools/label_efficiency.py: 0.4 CPU seconds per
# iteration of 16 images of 128 px. --annotations and the options after it replace the data.
_base_ = ['mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        # Random initialization equals that of the pre-trained models.
        zero_init_residual=False,
        style='pytorch',
    ),
    # P3 to P5; those of a pre-trained FPN that starts at P2 are loaded.
    neck=dict(
        type='FPN', in_channels=[32, 64, 128, 256], out_channels=64, start_level=1, num_outs=3, norm_cfg=norm_cfg
    ),
    bbox_head=dict(
        type='FCOSHead',
        num_classes=20,
        in_channels=64,
        feat_channels=64,
        stacked_convs=1,
        strides=[8, 16, 32],
        # 4 strides instead of mmdet's 8: objects are smaller in images of 128 px.
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(nms_pre=300, score_thr=0.005, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # Larger images would be padded to the next multiple of 32.
    dict(type='RandomResize', scale=[(256, 104), (256, 128)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
classes = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
    'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
data_root = 'data/voc_animals/'
# Loader workers would compete with the training for two cores.
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=16,
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Batches of equal orientation need less padding.
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        filter_cfg=dict(filter_empty_gt=False, min_size=8),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=8,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}annotations/val.json', metric='bbox')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=10, norm_type=2),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=8)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=90),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, T_max=8, convert_to_iter_based=True),
]
