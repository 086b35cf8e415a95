# Paper, Table 2: Mask R-CNN R50-FPN on 10 % of COCO, 27,000 iterations, initialized from 800 epochs of CCOP
# (backbone and FPN).
_base_ = ['../../_base_/mask-rcnn_r50-fpn_27k_coco-10pct.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'))
