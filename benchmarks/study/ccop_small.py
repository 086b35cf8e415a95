# CCOP at the smallest size that shows whether it learns: ResNet-18 with half the channels, views of 80 px. The data are
# named by transfer_study.py. Levels by size, curriculum and losses are the paper's.
_base_ = ['../../configs/ccop/ccop_r18_fpn_demo.py']

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    image_projector=dict(in_channels=256, hid_channels=512),
    object_projector=dict(in_channels=64 * 7 * 7, hid_channels=512),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 80
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.12))
default_hooks = dict(logger=dict(interval=5))
