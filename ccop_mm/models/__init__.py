"""The CCOP algorithm and its modules."""

from .box_jitter import SCSBoxJitter
from .ccop import CCOP
from .data_preprocessor import TwoViewDataPreprocessor
from .heads import ImageContrastHead, IntraImageLoss, ObjectContrastHead, ProjectionMLP
from .momentum import MomentumEncoder
from .object_pool import ObjectPool
from .queue import FeatureQueue

__all__ = [
    'CCOP',
    'FeatureQueue',
    'ImageContrastHead',
    'IntraImageLoss',
    'MomentumEncoder',
    'ObjectContrastHead',
    'ObjectPool',
    'ProjectionMLP',
    'SCSBoxJitter',
    'TwoViewDataPreprocessor',
]
