# Two MoCo v2 views of each image and the boxes that are visible in both. The dataloader reads, decodes, crops and flips the
# images and samples the parameters of color jitter, grayscale and blur. The model's data preprocessor applies these to
# the batch, on the GPU if there is one. coco_two_views_per_image.py applies them in the dataloader instead.
view_pipeline = [
    dict(type='ObjectResizedCrop', size=224, scale=(0.2, 1.0)),
    dict(
        type='RandomApply',
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
        prob=0.8,
    ),
    # Images are BGR here, and so are the grayscale weights (ITU-R 601).
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
    dict(type='ObjectFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadUnlabeledImage', decode=False),
    dict(type='SplitTwoObjectViews', transforms=view_pipeline),
    dict(type='PackObjectViews', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
]
train_dataloader = dict(
    batch_size=32,  # per GPU, 256 on 8 GPUs
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='EpochIndexSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ProposalDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_train2017.json',  # only the list of images is read
        data_prefix=dict(img_path='train2017/'),
        proposal_file='proposals/train2017.npz',
        num_proposals=48,  # about 12 are visible in both views, as in the paper (docs/design.md)
        pipeline=train_pipeline,
    ),
)
