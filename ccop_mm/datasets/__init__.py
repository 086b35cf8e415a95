"""Photos and proposals, and the two views a training step sees."""

from .proposal_dataset import ProposalDataset
from .readable_image import LoadReadableImage
from .sampler import EpochIndexSampler, SampleKey
from .transforms import LoadPhoto, ObjectFlip, ObjectResizedCrop, TwoObjectViews

__all__ = [
    'EpochIndexSampler',
    'LoadPhoto',
    'LoadReadableImage',
    'ObjectFlip',
    'ObjectResizedCrop',
    'ProposalDataset',
    'SampleKey',
    'TwoObjectViews',
]
