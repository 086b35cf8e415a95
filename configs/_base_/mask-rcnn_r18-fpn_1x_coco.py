# Paper, Table 8: Mask R-CNN R18-FPN on COCO, 1x.
_base_ = ['./mask-rcnn_r50-fpn_1x_coco.py']

model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
