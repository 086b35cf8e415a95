# Paper, Table 3: RetinaNet R50-FPN on COCO, 1x. A config of configs/transfer/ adds what it starts from.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './transfer_schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# The paper's protocol: normalization trains, synchronized, in backbone and FPN, no stage is frozen, and the heads have
# group normalization (32 groups, Detectron2's number). No ImageNet weights unless a config names them.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=dict(type='GN', num_groups=32, requires_grad=True)),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

# Detectron2's INPUT.MIN_SIZE_TRAIN; mmdet's 1x trains at 800 alone.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short) for short in (640, 672, 704, 736, 768, 800)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.01))
# The first one saves before it deletes; see docs/design.md.
default_hooks = dict(
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3),
    logger=dict(log_metric_by_epoch=False),  # else evaluations are logged as of step 0
)
log_processor = dict(by_epoch=False)

# What stays mmdet's: its FPN gives P6 and P7 norm layers as well and no ReLU before P7, Detectron2's the other way round;
# L1 for boxes, where Detectron2 has smooth L1 (beta 0.1); running statistics at test as training left them (no precise BN).
