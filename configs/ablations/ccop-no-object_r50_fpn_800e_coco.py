# CCOP without objects: the image loss only.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(object_head=dict(loss_weight=0.0), intra_loss=dict(loss_weight=0.0))
