"""Checkpoints: reading, conversion between formats, and initialization of detectors."""

from .checkpoint_file import checksum, read_checkpoint, read_state_dict
from .convert import convert
from .encoder_pretrained import EncoderPretrained
from .formats import FOREIGN_FORMATS, TARGETS
from .pretrained import BackbonePretrained, CCOPPretrained

__all__ = [
    'FOREIGN_FORMATS',
    'TARGETS',
    'BackbonePretrained',
    'CCOPPretrained',
    'EncoderPretrained',
    'checksum',
    'convert',
    'read_checkpoint',
    'read_state_dict',
]
