# Paper, Table 1: Mask R-CNN R50-FPN on COCO, 1x. The configs in configs/transfer/mask_rcnn/ set the initial weights.
_base_ = [
    './mask-rcnn_ccop_transfer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './transfer_schedule_1x.py',
]

# The paper uses SyncBN in the heads as well. mmdet's default box head has no normalization layers, so this is the head of
# the Detectron2 YAML that the authors' benchmark script runs (coco_R_50_FPN_1x_infomin.yaml): four convolutions and one
# fully connected layer. The RPN has no normalization there either.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

# Detectron2's INPUT.MIN_SIZE_TRAIN; mmdet's 1x configs train at 800 only.
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
    logger=dict(log_metric_by_epoch=False),  # otherwise evaluations are logged at step 0
)
log_processor = dict(by_epoch=False)

# Differences from that YAML: BN statistics are not recomputed before testing (TEST.PRECISE_BN), training is in full
# precision unless --amp is passed (SOLVER.AMP), and anchors, sampling and losses are mmdet's.
