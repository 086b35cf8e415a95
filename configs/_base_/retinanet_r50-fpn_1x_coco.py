# Paper, Table 3: RetinaNet R50-FPN on COCO, 1x. The configs in configs/transfer/retinanet/ set the initial weights.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './transfer_schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['ccop_mm'], allow_failed_imports=False)

# The paper fine-tunes with SyncBN in backbone and FPN, GN in the heads (32 groups, as in Detectron2) and without frozen
# stages. ImageNet weights are not loaded: model.init_cfg sets the initialization.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=dict(type='GN', num_groups=32, requires_grad=True)),
    init_cfg=dict(type='CCOPPretrained', checkpoint=None),
)

# Detectron2's INPUT.MIN_SIZE_TRAIN; mmdet's 1x configs train at 800 only.
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
# SafeCheckpointHook deletes old checkpoints only after saving a new one (docs/design.md).
default_hooks = dict(
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3),
    logger=dict(log_metric_by_epoch=False),  # otherwise evaluations are logged at step 0
)
log_processor = dict(by_epoch=False)

# Differences from Detectron2: P6 and P7 have normalization layers and there is no ReLU before P7, the box loss is L1
# instead of smooth L1 (beta 0.1), and BN statistics are not recomputed before testing (no precise BN).
