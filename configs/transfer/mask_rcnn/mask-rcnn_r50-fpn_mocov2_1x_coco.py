# Paper, Table 1: Mask R-CNN R50-FPN on COCO, 1x, initialized from MoCo v2 (backbone). docs/transfer.md explains how
# to obtain the file.
_base_ = ['../../_base_/mask-rcnn_r50-fpn_1x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
