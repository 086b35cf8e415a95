"""Datasets and transforms: images and their proposals in, two augmented views with matched boxes out."""

from .load_image import LoadUnlabeledImage
from .load_readable_image import LoadReadableImage
from .proposal_dataset import ProposalDataset
from .sampler import EpochIndexSampler, SampleKey
from .split_views import PackObjectViews, SplitTwoObjectViews
from .transforms import ObjectFlip, ObjectResizedCrop, TwoObjectViews

__all__ = [
    'EpochIndexSampler',
    'LoadUnlabeledImage',
    'LoadReadableImage',
    'ObjectFlip',
    'ObjectResizedCrop',
    'PackObjectViews',
    'ProposalDataset',
    'SampleKey',
    'SplitTwoObjectViews',
    'TwoObjectViews',
]
