# Paper, Table 8: Mask R-CNN R101-FPN on COCO, 1x, initialized from supervised ImageNet weights (backbone).
_base_ = ['../../_base_/mask-rcnn_r101-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet101'))
