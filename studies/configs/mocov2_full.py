# mmselfsup's MoCo v2 with the backbone, images, views, batch size and learning rate of ccop_full.py.
_base_ = ['./ccop_full.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=1536,  # transfer_study.py sets it from the number of images; MoCo needs a multiple of the batch size
    momentum=0.99,
)
custom_hooks = [dict(type='FiniteLossHook')]
