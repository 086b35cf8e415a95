"""A pre-training config of a CCOP with four channels, for tools that read one."""

CONFIG = """
default_scope = 'mmselfsup'
model = dict(
    type='CCOP',
    backbone=dict(type='mmdet.ResNet', depth=18, base_channels=4, norm_eval=False, frozen_stages=-1),
    neck=dict(type='mmdet.FPN', in_channels=[4, 8, 16, 32], out_channels=4, num_outs=4),
    image_projector=dict(type='ProjectionMLP', in_channels=32, hid_channels=8, out_channels=8),
    object_projector=dict(type='ProjectionMLP', in_channels=196, hid_channels=8, out_channels=8),
    box_jitter=dict(type='SCSBoxJitter', noise=(0.1, 0.5)),
    queue_len=16,
    feat_dim=8,
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
)
"""
