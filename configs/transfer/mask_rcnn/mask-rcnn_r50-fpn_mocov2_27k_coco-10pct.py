# Paper, Table 2: Mask R-CNN R50-FPN on 10 % of COCO, 27,000 iterations, initialized from MoCo v2 (backbone).
# docs/transfer.md explains how to obtain the file.
_base_ = ['../../_base_/mask-rcnn_r50-fpn_27k_coco-10pct.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
