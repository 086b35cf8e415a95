# Paper, Table 3: RetinaNet R50-FPN on COCO, 1x, initialized from supervised ImageNet weights (backbone).
_base_ = ['../../_base_/retinanet_r50-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))
