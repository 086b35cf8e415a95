# Paper, Table 1: Mask R-CNN R50-FPN on COCO, 1x, from 800 epochs of CCOP (backbone and FPN).
# 16 images a step: 8 GPUs x 2. With other numbers pass --auto-scale-lr or set the learning rate in proportion.
_base_ = [
    '../../_base_/mask-rcnn_ccop_transfer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
]

model = dict(init_cfg=dict(checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'))

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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# Detectron2's defaults: no weight decay on norm layers (SOLVER.WEIGHT_DECAY_NORM), 1,000 iterations of warm-up
# (SOLVER.WARMUP_ITERS); mmdet decays them and warms up for 500. Learning rate 0.02 as in both.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]

# What stays mmdet's: 12 epochs are 87,960 iterations, Detectron2's 1x has 90,000 (steps at 60,000 and 80,000); and the
# running statistics are used at test as training left them, where those configs recompute them first (TEST.PRECISE_BN).
