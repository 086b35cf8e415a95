# Randomly initialized.
_base_ = ['../../_base_/keypoint-rcnn_transfer_2x_coco.py']

model = dict(init_cfg=None)
