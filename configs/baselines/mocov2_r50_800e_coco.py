# mmselfsup's MoCo v2 on the photos, views, backbone and schedule of CCOP's recipe: what CCOP is to be compared with. Of
# its own: the backbone's last stage, its neck and head, and its learning rate (0.03 for 256 photos, by its authors). The
# checkpoint goes where configs/transfer/ has *_mocov2_*.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=65536,
    momentum=0.999,
)
train_dataloader = dict(dataset=dict(num_proposals=0))
optim_wrapper = dict(optimizer=dict(lr=0.03))
custom_hooks = [dict(type='FiniteLossHook')]  # there is no curriculum to move
