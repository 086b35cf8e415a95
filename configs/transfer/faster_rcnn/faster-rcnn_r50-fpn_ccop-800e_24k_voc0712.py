# Paper, Table 3: Faster R-CNN R50-FPN on Pascal VOC, initialized from 800 epochs of CCOP (backbone and FPN).
_base_ = ['../../_base_/faster-rcnn_r50-fpn_24k_voc0712.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'))
