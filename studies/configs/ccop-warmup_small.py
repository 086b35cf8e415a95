# CCOP with a warm-up, without which the image keys collapse at this learning rate (studies/LOG.md), for
# `transfer_study.py --ccop`; together with `--anneal` for longer runs.
_base_ = ['./ccop_small.py']

param_scheduler = [dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=90)]
