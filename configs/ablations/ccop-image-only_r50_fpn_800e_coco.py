# CCOP without objects: its image loss alone. FPN and object projector get no gradient.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

train_dataloader = dict(dataset=dict(num_proposals=0))
