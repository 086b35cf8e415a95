# Initialized from supervised ImageNet weights (backbone).
_base_ = ['../../_base_/keypoint-rcnn_transfer_2x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))
