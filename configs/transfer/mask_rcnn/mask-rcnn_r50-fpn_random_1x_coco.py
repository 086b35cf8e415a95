# Paper, Table 1: Mask R-CNN R50-FPN on COCO, 1x, randomly initialized.
_base_ = ['../../_base_/mask-rcnn_r50-fpn_1x_coco.py']

model = dict(init_cfg=None)
