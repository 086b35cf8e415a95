# Paper, Table 8: Mask R-CNN R18-FPN on COCO, 1x, initialized from 800 epochs of CCOP (backbone and FPN).
_base_ = ['../../_base_/mask-rcnn_r18-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r18_fpn_800e_coco/epoch_800.pth'))
