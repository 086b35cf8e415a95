# Paper, transfer to COCO's person keypoints: Keypoint R-CNN R50-FPN, 2x. The initial weights are all that a config on top
# of this one sets. 16 images a step: 8 GPUs x 2. With other numbers pass --auto-scale-lr or set the rate in proportion.
_base_ = ['./keypoint-rcnn_r50_fpn.py', './coco_person_keypoints.py']

# As in mask-rcnn_ccop_transfer.py: normalization trains, synchronized, in backbone and FPN; no stage is frozen.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
)

# 2x in Detectron2: 180,000 iterations, the rate divided by 10 at 120,000 and 160,000, 1,000 iterations of warm-up, no weight
# decay on norm layers.
max_iters = 180000
interval = 10000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[120000, 160000], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

# Saves before it deletes; see docs/design.md.
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),  # else evaluations are logged as of step 0
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)
