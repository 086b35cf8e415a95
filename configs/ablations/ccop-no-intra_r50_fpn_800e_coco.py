# CCOP without the intra-image loss: no similarity is above a margin of 1.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(intra_loss=dict(alpha=1.0))
