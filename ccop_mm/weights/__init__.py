"""Checkpoints in and out."""

from .pretrained import CCOPPretrained, checksum, read_state_dict

__all__ = ['CCOPPretrained', 'checksum', 'read_state_dict']
