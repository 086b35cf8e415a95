# The paper's recipe with ResNet-101 (Table 8).
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(backbone=dict(depth=101))
