# Detectron2's 1x, which the paper follows: 90,000 iterations of 16 images, learning rate 0.02, divided by ten after
# 60,000 and 80,000. 16 images are 8 GPUs x 2; with other numbers pass --auto-scale-lr or set the rate in proportion.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Detectron2's defaults: no weight decay on norm layers (SOLVER.WEIGHT_DECAY_NORM), 1,000 iterations of warm-up
# (SOLVER.WARMUP_ITERS); mmdet decays them and warms up for 500.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
