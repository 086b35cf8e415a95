# CCOP without the intra-image loss.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(intra_loss=dict(loss_weight=0.0))
