# Initialized from 800 epochs of MoCo v2 (backbone). docs/transfer.md explains how to obtain the file.
_base_ = ['../../_base_/keypoint-rcnn_transfer_2x_coco.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
