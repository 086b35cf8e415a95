# MoCo v2 with one of the two best recipes found for it (docs/results.md), for `transfer_study.py --moco`.
_base_ = ['./mocov2_small.py']

optim_wrapper = dict(optimizer=dict(lr=0.03))
param_scheduler = [dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=90)]
