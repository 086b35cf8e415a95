# Paper, Table 8: Mask R-CNN R101-FPN on COCO, 1x, initialized from MoCo v2 (backbone). Its authors released no
# ResNet-101 weights.
_base_ = ['../../_base_/mask-rcnn_r101-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_r101.pth'))
