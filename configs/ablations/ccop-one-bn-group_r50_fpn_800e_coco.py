# CCOP without shuffled or split batch statistics: the key encoder sees the same batch as the query encoder.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(key_batch='none')
