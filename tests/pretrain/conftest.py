"""A small detector, and images that fit it."""

import cv2
import pytest
from synthetic_images import make_scene

#: A narrow RTMDet: levels of strides 8, 16 and 32.
DETECTOR = """
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py']
model = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[32, 64, 128], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, num_classes=3),
)
"""


@pytest.fixture
def detector_config(tmp_path):
    """Config file of a small detector."""
    path = tmp_path / 'detector.py'
    path.write_text(DETECTOR)
    return path


@pytest.fixture
def images(tmp_path):
    """Folder of eight images of 96 x 128 pixels and one damaged file."""
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for seed in range(8):
        name = f'sub/{seed}.png' if seed > 5 else f'{seed}.png'
        cv2.imwrite(str(folder / name), make_scene(seed, 96, 128))
    (folder / 'damaged.jpg').write_bytes(b'\xff\xd8\xff0')
    return folder
