# mmselfsup's SimSiam (arXiv 2011.10566). There is no published COCO recipe: this is that of its authors on ImageNet, 256 images,
# SGD 0.05, cosine, weight decay 1e-4, a predictor with a constant learning rate, for 800 epochs.
_base_ = ['../_base_/baseline_r50_800e_coco.py']

norm_cfg = dict(type='SyncBN')
model = dict(
    _delete_=True,
    type='SimSiam',
    data_preprocessor=dict(type='TwoViewDataPreprocessor', **_base_.model.data_preprocessor),
    backbone=dict(_base_.model.backbone, out_indices=(3,), norm_cfg=norm_cfg, zero_init_residual=True),
    neck=dict(
        type='NonLinearNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=2048,
        num_layers=3,
        with_last_bn_affine=False,
        with_avg_pool=True,
        norm_cfg=norm_cfg,
    ),
    head=dict(
        type='LatentPredictHead',
        predictor=dict(
            type='NonLinearNeck',
            in_channels=2048,
            hid_channels=512,
            out_channels=2048,
            with_avg_pool=False,
            with_last_bn=False,
            with_last_bias=True,
            norm_cfg=norm_cfg,
        ),
        loss=dict(type='CosineSimilarityLoss'),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.05), paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}))
custom_hooks = [dict(type='FiniteLossHook'), dict(type='FixedRateHook')]
