# Paper, Table 2: Mask R-CNN R50-FPN on 10 % of COCO, 27,000 iterations, initialized from supervised ImageNet weights
# (backbone).
_base_ = ['../../_base_/mask-rcnn_r50-fpn_27k_coco-10pct.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))
