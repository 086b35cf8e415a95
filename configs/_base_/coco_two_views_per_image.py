# coco_two_views.py with photometric augmentation in the dataloader by mmselfsup's transforms. It takes about four times
# the CPU time in the dataloader (docs/performance.md) but allows transforms that have no batched version.
_base_ = ['./coco_two_views.py']

train_pipeline = [
    dict(type='LoadUnlabeledImage'),
    dict(type='TwoObjectViews', transforms=_base_.view_pipeline),
    dict(type='PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
