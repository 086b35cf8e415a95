# mmselfsup's MoCo v2 on the backbone, photos, views and batch of ccop_small.py; its momentum and temperature too. What
# is MoCo's alone: the backbone's last stage, its neck, its head, and the learning rate.
_base_ = ['./ccop_small.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=256, hid_channels=512, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=576,  # transfer_study.py fits it to the photos: MoCo wants a multiple of the batch
    momentum=0.99,
)
custom_hooks = [dict(type='FiniteLossHook')]  # there is no curriculum to move
# Its own best of 0.015, 0.03, 0.08 and AdamW. At CCOP's 0.08 it does not get past random weights (docs/results.md).
optim_wrapper = dict(optimizer=dict(lr=0.03))
