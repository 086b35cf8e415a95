"""Keypoint R-CNN for mmdet: model, data, metric and figures, with or without pre-training.

``custom_imports = dict(imports=['ccop_mm.detection'])`` registers all of it in mmdet's registries. ``import ccop_mm``
alone does not import this package.
"""

from .coco_keypoint_dataset import CocoKeypointDataset
from .coco_keypoint_metric import CocoKeypointMetric
from .keypoint_boxes import KeypointBoxes
from .keypoint_head import KeypointHead
from .keypoint_rcnn import KeypointRCNN
from .keypoint_roi_head import KeypointRoIHead
from .keypoint_visualizer import KeypointLocalVisualizer
from .torchvision_weights import RoundedAnchorGenerator, from_torchvision
from .transforms import LoadKeypointAnnotations, PackKeypointInputs

__all__ = [
    'CocoKeypointDataset',
    'CocoKeypointMetric',
    'KeypointBoxes',
    'KeypointHead',
    'KeypointLocalVisualizer',
    'KeypointRCNN',
    'KeypointRoIHead',
    'LoadKeypointAnnotations',
    'PackKeypointInputs',
    'RoundedAnchorGenerator',
    'from_torchvision',
]
