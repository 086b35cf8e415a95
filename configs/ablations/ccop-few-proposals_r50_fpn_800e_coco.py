# CCOP with 4 proposals per image instead of 48.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

train_dataloader = dict(dataset=dict(num_proposals=4))
