# The paper's recipe with ResNet-18 (Table 8).
_base_ = ['./ccop_r50_fpn_800e_coco.py']

model = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=[64, 128, 256, 512]),
    image_projector=dict(in_channels=512),
)
