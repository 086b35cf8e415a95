# Paper, Table 8: Mask R-CNN R101-FPN on COCO, 1x, initialized from 800 epochs of CCOP (backbone and FPN).
_base_ = ['../../_base_/mask-rcnn_r101-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r101_fpn_800e_coco/epoch_800.pth'))
