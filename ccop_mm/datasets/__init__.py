"""Photos and proposals, and the two views a training step sees."""

from .loading import LoadPhoto
from .proposal_dataset import ProposalDataset
from .readable_image import LoadReadableImage
from .sampler import EpochIndexSampler, SampleKey
from .split_views import PackObjectViews, SplitTwoObjectViews
from .transforms import ObjectFlip, ObjectResizedCrop, TwoObjectViews

__all__ = [
    'EpochIndexSampler',
    'LoadPhoto',
    'LoadReadableImage',
    'ObjectFlip',
    'ObjectResizedCrop',
    'PackObjectViews',
    'ProposalDataset',
    'SampleKey',
    'SplitTwoObjectViews',
    'TwoObjectViews',
]
