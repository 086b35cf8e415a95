# mmselfsup's MoCo v2 by the recipe of ccop_small.py: backbone, photos, views, batch, learning rate, momentum and
# temperature. What is MoCo's alone: the backbone's last stage, its neck and its head.
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
