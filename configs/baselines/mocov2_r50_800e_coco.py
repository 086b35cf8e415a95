# mmselfsup's MoCo v2 by CCOP's recipe: backbone, photos, views, batch, learning rate and schedule; its own are the
# backbone's last stage, its neck and its head. 0.3 for 256 photos is also what DenseCL's authors train with on COCO; MoCo
# v2's have 0.03 on ImageNet, so try both. The photos are those of CCOP's proposals file. Several GPUs, please: in one
# process mmselfsup's MoCo has both views of a photo share batch statistics, by which the positive can be told.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=65536,  # a multiple of a step's photos; for a small set about half of its photos
    momentum=0.999,
)
train_dataloader = dict(dataset=dict(num_proposals=0))
custom_hooks = [dict(type='FiniteLossHook')]  # the others look at CCOP's objects and queues
