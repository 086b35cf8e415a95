# Paper, Table 3: Faster R-CNN R50-FPN on Pascal VOC, from MoCo v2 (backbone). The file: see docs/transfer.md.
_base_ = ['../../_base_/faster-rcnn_r50-fpn_24k_voc0712.py']

model = dict(init_cfg=dict(type='BackbonePretrained', checkpoint='checkpoints/moco_v2_800ep.pth'))
