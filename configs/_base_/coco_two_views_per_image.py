# As coco_two_views.py, with the photometric part done per image in the loader, by mmselfsup's own transforms: three
# times the CPU time there (docs/performance.md). For transforms that the batched form does not have.
_base_ = ['./coco_two_views.py']

train_pipeline = [
    dict(type='LoadPhoto'),
    dict(type='TwoObjectViews', transforms=_base_.view_pipeline),
    dict(type='PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
