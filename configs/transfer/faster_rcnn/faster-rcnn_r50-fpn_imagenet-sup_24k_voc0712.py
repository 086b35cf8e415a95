# Paper, Table 3: Faster R-CNN R50-FPN on Pascal VOC, initialized from supervised ImageNet weights (backbone).
_base_ = ['../../_base_/faster-rcnn_r50-fpn_24k_voc0712.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='torchvision://resnet50'))
