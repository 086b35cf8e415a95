# faster-rcnn_r50-fpn_ccop-800e_24k_voc0712.py with annotations in COCO format.
_base_ = ['../../_base_/faster-rcnn_r50-fpn_24k_voc0712-cocofmt.py']

model = dict(init_cfg=dict(type='CCOPPretrained', checkpoint='work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth'))
