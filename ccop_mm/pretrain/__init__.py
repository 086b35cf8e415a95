"""Pre-training of any detector's backbone and neck, from its config and a folder of images."""

from .run import PretrainResult, pretrain

__all__ = ['PretrainResult', 'pretrain']
