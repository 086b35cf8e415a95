# CCOP at a size that two CPU cores train in minutes: ResNet-18 with half the channels, views of 80 px.
# transfer_study.py adds the dataset. studies/LOG.md lists the alternatives that were tried for each choice.
_base_ = ['../../configs/ccop/ccop_r18_fpn_demo.py']

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    image_projector=dict(in_channels=256, hid_channels=512),
    # 512 hidden channels and 4 candidates did not improve any level significantly.
    object_projector=dict(in_channels=64 * 7 * 7, hid_channels=256),
    # Half of the default 48, 96, 192, with which few objects of an 80 px view belong to P4 and P5.
    object_pool=dict(level_sides=(24, 48, 96)),
    box_jitter=dict(num_jitter=2),  # noise and min_iou: the paper's
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 80
# Loader workers would compete with the training for two cores.
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.08))  # about the paper's 0.3 for a batch of 256, scaled linearly
param_scheduler = []  # constant, as at the start of a long run
default_hooks = dict(logger=dict(interval=5))
