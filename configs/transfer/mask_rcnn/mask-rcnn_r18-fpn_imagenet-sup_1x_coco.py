# Paper, Table 8: Mask R-CNN R18-FPN on COCO, 1x, initialized from supervised ImageNet weights (backbone).
_base_ = ['../../_base_/mask-rcnn_r18-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet18'))
