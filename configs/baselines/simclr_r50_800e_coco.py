# mmselfsup's SimCLR (arXiv 2002.05709). There is no published COCO recipe: this is that of its authors on ImageNet for 256 images
# (LARS 0.3, weight decay 1e-6 except for normalization and biases, warm-up of 10 epochs, cosine, temperature 0.1), for 800 epochs
# and with the views of CCOP, whose color jitter is weaker. Negatives are the other images of the batch on all GPUs.
_base_ = ['../_base_/baseline_r50_800e_coco.py']

norm_cfg = dict(type='SyncBN')
model = dict(
    _delete_=True,
    type='SimCLR',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,), norm_cfg=norm_cfg),
    neck=dict(
        type='NonLinearNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_avg_pool=True,
        norm_cfg=norm_cfg,
    ),
    head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.1),
)
excluded = dict(decay_mult=0, lars_exclude=True)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='LARS', lr=0.3, momentum=0.9, weight_decay=1e-6),
    # downsample.1 is the normalization of a shortcut.
    paramwise_cfg=dict(custom_keys={'bn': excluded, 'bias': excluded, 'downsample.1': excluded}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=790,
        eta_min=0.0,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]
