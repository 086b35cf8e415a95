# Paper, Table 8: Mask R-CNN R101-FPN on COCO, 1x, randomly initialized.
_base_ = ['../../_base_/mask-rcnn_r101-fpn_1x_coco.py']

model = dict(init_cfg=None)
