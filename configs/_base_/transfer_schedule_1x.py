# Detectron2's 1x schedule, which the paper uses. The learning rate is for batch size 16 (8 GPUs x 2); use --auto-scale-lr
# with other batch sizes.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# As in Detectron2 and unlike mmdet's 1x: no weight decay on normalization layers (SOLVER.WEIGHT_DECAY_NORM) and 1,000
# iterations of warm-up (SOLVER.WARMUP_ITERS) instead of 500.
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
