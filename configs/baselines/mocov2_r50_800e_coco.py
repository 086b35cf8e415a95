# mmselfsup's MoCo v2. The learning rate of 0.3 at batch size 256 is also DenseCL's on COCO; MoCo v2 uses 0.03 on ImageNet, so
# try both. Train on several GPUs: in a single process mmselfsup's MoCo does not shuffle the key batch, so that query and key
# batch consist of the same images and their batch statistics can reveal the positive pair (MoCo, Sec. 3.3).
_base_ = ['../_base_/baseline_r50_800e_coco.py']

model = dict(
    _delete_=True,
    type='MoCo',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='MoCoV2Neck', in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=65536,  # must be a multiple of the batch size; for a small dataset about half of its images
    momentum=0.999,
)
