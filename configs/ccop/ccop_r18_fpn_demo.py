# A smoke test for two CPU cores: `make demo` trains it on synthetic scenes or on a folder of images. Training is far too
# short for a comparison with the paper.
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(
    backbone=dict(depth=18),
    # With 256 channels the FPN costs as much as the ResNet.
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=128),
    image_projector=dict(in_channels=512, hid_channels=512),
    object_projector=dict(in_channels=128 * 7 * 7, hid_channels=512),
    box_jitter=dict(num_jitter=4),
    # 65,536 keys would span hundreds of epochs of a small dataset (docs/design.md).
    queue_len='auto',
    object_queue_len='auto',
    # A momentum of 0.999 averages over a thousand iterations; this run has a few hundred.
    momentum=0.99,
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 112

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    pin_memory=False,
    dataset=dict(
        data_root='data/demo/',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img_path='images/'),
        proposal_file='proposals.npz',
        pipeline=train_pipeline,
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.06))
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=30, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10))
