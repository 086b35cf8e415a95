# CCOP without the image loss: object and intra-image loss only.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(image_head=dict(loss_weight=0.0))
