default_scope = 'mmselfsup'
custom_imports = dict(imports=['ccop_mm'])

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='IterationSeedHook'),
    accumulation=dict(type='GradientAccumulationHook'),
)
custom_hooks = [
    dict(type='SpatialCurriculumHook'),
    dict(type='FiniteLossHook'),
    dict(type='TrainingHealthHook'),
    dict(type='ViewStatisticsHook'),
]

env_cfg = dict(
    cudnn_benchmark=True,  # every batch has the same shape
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # The other ranks wait while rank 0 runs a probe. nccl's default of 10 minutes can be too short for that.
    dist_cfg=dict(backend='nccl', timeout=3600),
)

log_processor = dict(window_size=10)
visualizer = dict(type='SelfSupVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')

log_level = 'INFO'
load_from = None
resume = False
