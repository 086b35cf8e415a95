# mmselfsup's DenseCL (arXiv 2011.09157) with the recipe of its authors on COCO: 256 images, SGD 0.3, cosine, 800 epochs. The
# dense loss starts after 1,000 iterations. Train on several GPUs, for the reason given in mocov2_r50_800e_coco.py.
_base_ = ['../_base_/baseline_r50_800e_coco.py']

model = dict(
    _delete_=True,
    type='DenseCL',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,)),
    neck=dict(type='DenseCLNeck', in_channels=2048, hid_channels=2048, out_channels=128, num_grid=None),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
    queue_len=65536,  # of each of the two queues; must be a multiple of the batch size
    momentum=0.999,
    loss_lambda=0.5,
)
custom_hooks = [dict(type='FiniteLossHook'), dict(type='DenseCLHook', start_iters=1000)]
