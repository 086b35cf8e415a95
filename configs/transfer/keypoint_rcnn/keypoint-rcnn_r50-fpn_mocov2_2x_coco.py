# From 800 epochs of MoCo v2: the backbone.
_base_ = ['../../_base_/keypoint-rcnn_transfer_2x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
