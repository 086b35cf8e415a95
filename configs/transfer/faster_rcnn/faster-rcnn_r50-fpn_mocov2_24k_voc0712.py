# Paper, Table 3: Faster R-CNN R50-FPN on Pascal VOC, initialized from MoCo v2 (backbone). docs/transfer.md explains
# how to obtain the file.
_base_ = ['../../_base_/faster-rcnn_r50-fpn_24k_voc0712.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
