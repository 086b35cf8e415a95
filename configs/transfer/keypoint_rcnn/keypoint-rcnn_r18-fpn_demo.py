# A small Keypoint R-CNN for smoke tests on two CPU cores: R18, narrow heads, few RoIs per image. Its results are not
# comparable with those of other configs. For other data, set data_root, ann_file and data_prefix.img of each dataset and
# ann_file of the evaluators; for another skeleton also metainfo, num_classes and num_keypoints (docs/keypoint_rcnn.md).
_base_ = ['../../_base_/keypoint-rcnn_r50_fpn.py', '../../_base_/coco_person_keypoints.py']

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        keypoint_roi_extractor=dict(out_channels=64),
        keypoint_head=dict(in_channels=64, num_convs=4, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        # A quarter of 32 gives at most 8 positive RoIs per image, on which the keypoint branch trains.
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=20)),
)

scale = (256, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadKeypointAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackKeypointInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadKeypointAnnotations'),
    dict(type='PackKeypointInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
# No workers: small images load in milliseconds, and both cores are busy with training.
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, batch_sampler=None, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 120
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=40)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    # Overfits a few images in fewer iterations than SGD.
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
    # Stabilizes the first iterations of the heads at this learning rate.
    clip_grad=dict(max_norm=10),
)
auto_scale_lr = dict(enable=False, base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=0, begin=0, end=max_iters, by_epoch=False),
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=max_iters, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False, window_size=20)
