# Paper, transfer to COCO person keypoints: Keypoint R-CNN R50-FPN, 2x. The configs in configs/transfer/keypoint_rcnn/ set the
# initial weights. The learning rate is for batch size 16 (8 GPUs x 2); use --auto-scale-lr with other batch sizes.
_base_ = ['./keypoint-rcnn_r50_fpn.py', './coco_person_keypoints.py', './transfer_schedule_1x.py']

# The paper fine-tunes with SyncBN in backbone and FPN and without frozen stages.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
)

# Detectron2's 2x schedule: twice the iterations of 1x.
max_iters = 180000
interval = 10000
train_cfg = dict(max_iters=max_iters, val_interval=interval)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[120000, 160000], gamma=0.1),
]

# SafeCheckpointHook deletes old checkpoints only after saving a new one (docs/design.md).
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),  # otherwise evaluations are logged at step 0
    checkpoint=dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)
