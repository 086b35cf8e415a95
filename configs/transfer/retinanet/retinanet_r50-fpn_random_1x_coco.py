# Paper, Table 3: RetinaNet R50-FPN on COCO, 1x, randomly initialized.
_base_ = ['../../_base_/retinanet_r50-fpn_1x_coco.py']

model = dict(init_cfg=None)
