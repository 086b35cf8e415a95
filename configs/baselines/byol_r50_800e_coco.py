# mmselfsup's BYOL (arXiv 2006.07733) with the COCO recipe of ORL (arXiv 2106.11952): 512 images, SGD 0.4, cosine, warm-up of 4
# epochs, momentum from 0.99 to 1. The views are those of CCOP, without BYOL's solarization and asymmetric blur.
_base_ = ['../_base_/baseline_r50_800e_coco.py']

norm_cfg = dict(type='SyncBN')
predictor = dict(
    type='NonLinearNeck',
    in_channels=256,
    hid_channels=4096,
    out_channels=256,
    num_layers=2,
    with_bias=True,
    with_last_bn=False,
    with_avg_pool=False,
    norm_cfg=norm_cfg,
)
model = dict(
    _delete_=True,
    type='BYOL',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,), norm_cfg=norm_cfg),
    neck=dict(predictor, in_channels=2048, with_avg_pool=True),
    head=dict(type='LatentPredictHead', predictor=predictor, loss=dict(type='CosineSimilarityLoss')),
    base_momentum=0.99,
)
train_dataloader = dict(batch_size=64)  # per GPU, 512 on 8 GPUs
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=796,
        eta_min=0.0,
        by_epoch=True,
        begin=4,
        end=800,
        convert_to_iter_based=True,
    ),
]
