"""Keypoint R-CNN for mmdet: model, dataset, metric and visualizer.

``custom_imports = dict(imports=['ccop_mm.detection'])`` registers everything in mmdet's registries. ``import ccop_mm``
alone does not import this package. The detector does not require CCOP pre-training.
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
