# CCOP without a curriculum: the final noise of the paper's curriculum from the first iteration on.
_base_ = ['../ccop/ccop_r50_fpn_800e_coco.py']

model = dict(box_jitter=dict(noise=(1.0, 1.0), min_iou=(0.3, 0.3)))
