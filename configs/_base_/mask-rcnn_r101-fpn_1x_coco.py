# Paper, Table 8: Mask R-CNN R101-FPN on COCO, 1x.
_base_ = ['./mask-rcnn_r50-fpn_1x_coco.py']

model = dict(backbone=dict(depth=101))
