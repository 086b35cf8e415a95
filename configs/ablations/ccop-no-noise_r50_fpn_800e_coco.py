# CCOP without spatial noise: the positive of an object is the unjittered box of the key view.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(box_jitter=dict(num_jitter=1, noise=(0.0, 0.0)))
