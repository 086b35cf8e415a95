"""Photos and proposals, and the two views a training step sees."""

from .proposal_dataset import ProposalDataset
from .transforms import LoadPhoto, ObjectFlip, ObjectResizedCrop, TwoObjectViews

__all__ = ['LoadPhoto', 'ObjectFlip', 'ObjectResizedCrop', 'ProposalDataset', 'TwoObjectViews']
