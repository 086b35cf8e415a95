# mmselfsup's MoCo v2 with the recipe of ccop_small.py: backbone, images, views, batch size, learning rate, momentum and
# temperature. Specific to MoCo: the output stage of the backbone, the neck and the head.
_base_ = ['./ccop_small.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=256, hid_channels=512, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=576,  # transfer_study.py sets it from the number of images; MoCo needs a multiple of the batch size
    momentum=0.99,
)
custom_hooks = [dict(type='FiniteLossHook')]  # no SpatialCurriculumHook
