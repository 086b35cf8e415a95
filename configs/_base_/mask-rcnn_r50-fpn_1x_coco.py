# Paper, Table 1: Mask R-CNN R50-FPN on COCO, 1x. A config of configs/transfer/ adds what it starts from.
_base_ = [
    './mask-rcnn_ccop_transfer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './transfer_schedule_1x.py',
]

# The paper synchronizes the norm layers of the heads as well. mmdet's two-layer box head has none, so the box head is the
# one of the Detectron2 YAML that the authors' release trains (coco_R_50_FPN_1x_infomin.yaml): four convolutions and one
# fully connected layer; box and mask head with norm layers. The RPN has none there either.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

# Detectron2's INPUT.MIN_SIZE_TRAIN; mmdet's 1x trains at 800 alone.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short) for short in (640, 672, 704, 736, 768, 800)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), dataset=dict(pipeline=train_pipeline))
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=3),
    logger=dict(log_metric_by_epoch=False),  # else evaluations are logged as of step 0
)
log_processor = dict(by_epoch=False)

# What stays mmdet's: running statistics are used at test as training left them, where that YAML recomputes them first
# (TEST.PRECISE_BN); full precision, where that YAML trains in mixed (SOLVER.AMP; here --amp); anchors, sampling and losses.
