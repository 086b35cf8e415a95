# CCOP at the smallest size that shows whether it learns: ResNet-18 with half the channels, views of 80 px. The data are
# named by transfer_study.py. docs/results.md tells what was tried for each choice.
_base_ = ['../../configs/ccop/ccop_r18_fpn_demo.py']

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    image_projector=dict(in_channels=256, hid_channels=512),
    # With 512 and four candidates a step takes a fifth longer, and no level gains more than chance.
    object_projector=dict(in_channels=64 * 7 * 7, hid_channels=256),
    # Half of the usual 48, 96, 192. With the full ones P4 and P5 get few objects; with a third C3 learns less.
    object_pool=dict(level_sides=(24, 48, 96)),
    box_jitter=dict(num_jitter=2),  # the paper's whole curriculum
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 80
# On two cores that train, workers only get in the way.
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.08))  # about the paper's 0.3 for 256 photos
param_scheduler = []  # a long run's rate falls so slowly that its beginning does not see it
default_hooks = dict(logger=dict(interval=5))
