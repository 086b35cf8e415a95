# Small enough for two CPU cores: `make demo` trains it on synthetic scenes or on a folder of photos.
# It shows that the road works; it is far too short to be compared with the paper.
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=[64, 128, 256, 512]),
    image_projector=dict(in_channels=512, hid_channels=512),
    object_projector=dict(hid_channels=512),
    box_jitter=dict(num_jitter=4),
    # Queues of a few hundred photos' keys would be mostly the image's own objects; see docs/design.md.
    queue_len=256,
    object_queue_len=1024,
    # 0.999 follows over a thousand steps; this run has a few hundred.
    momentum=0.99,
)

view_pipeline = [
    dict(type='ObjectResizedCrop', size=112, scale=(0.2, 1.0)),
    dict(
        type='RandomApply',
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
    dict(type='ObjectFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadPhoto'),
    dict(type='TwoObjectViews', transforms=view_pipeline),
    dict(type='PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
]
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
param_scheduler = [dict(type='CosineAnnealingLR', T_max=30, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10))
