# CCOP as in the paper (arXiv 2111.13651).
model = dict(
    type='CCOP',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        non_blocking=True,  # takes effect because the dataloader pins memory
    ),
    backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        # mmdet's defaults freeze normalization and the first stage, which is meant for fine-tuning.
        norm_eval=False,
        frozen_stages=-1,
        # As in mmselfsup, torchvision and MoCo v2. mmdet's default is a zero-init residual, with which a short
        # pre-training learns much less (docs/results.md).
        zero_init_residual=False,
        style='pytorch',
    ),
    neck=dict(
        type='mmdet.FPN',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=4,  # P2 to P5
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    image_projector=dict(type='ProjectionMLP', in_channels=2048),
    object_projector=dict(type='ProjectionMLP', in_channels=256 * 7 * 7),
    image_head=dict(type='ImageContrastHead', temperature=0.2),
    object_head=dict(type='ObjectContrastHead', temperature=0.2),
    intra_loss=dict(type='IntraImageLoss', alpha=0.4, iou_thr=0.05, mode='hinge'),
    box_jitter=dict(type='SCSBoxJitter', num_jitter=10, noise=(0.3, 1.0), min_iou=(0.8, 0.3), anchor='top_left'),
    queue_len=65536,
    momentum=0.999,
)
