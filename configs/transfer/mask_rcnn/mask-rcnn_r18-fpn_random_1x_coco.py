# Paper, Table 8: Mask R-CNN R18-FPN on COCO, 1x, randomly initialized.
_base_ = ['../../_base_/mask-rcnn_r18-fpn_1x_coco.py']

model = dict(init_cfg=None)
