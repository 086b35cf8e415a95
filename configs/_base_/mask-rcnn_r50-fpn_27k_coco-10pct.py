# Paper, Table 2: Mask R-CNN R50-FPN on 10 % of COCO, 27,000 iterations. Create the annotation file with
#   python tools/misc/coco_subset.py data/coco/annotations/instances_train2017.json --percent 10 --seed 0 \
#       --out data/coco/annotations/instances_train2017_10pct-seed0.json
_base_ = ['./mask-rcnn_r50-fpn_1x_coco.py']

train_dataloader = dict(dataset=dict(ann_file='annotations/instances_train2017_10pct-seed0.json'))

# The paper gives only the total of 27,000 iterations. The decay steps are at 2/3 and 8/9 of it, as in 1x.
train_cfg = dict(max_iters=27000, val_interval=9000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=27000, milestones=[18000, 24000], gamma=0.1),
]
