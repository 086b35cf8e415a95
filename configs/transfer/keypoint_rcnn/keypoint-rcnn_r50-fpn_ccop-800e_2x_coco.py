# Initialized from 800 epochs of CCOP (backbone and FPN).
_base_ = ['../../_base_/keypoint-rcnn_transfer_2x_coco.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'))
