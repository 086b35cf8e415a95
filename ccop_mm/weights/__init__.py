"""Checkpoints in and out."""

from .convert import convert
from .files import checksum, read_checkpoint, read_state_dict
from .formats import SOURCES, TARGETS
from .pretrained import BackbonePretrained, CCOPPretrained

__all__ = [
    'SOURCES',
    'TARGETS',
    'BackbonePretrained',
    'CCOPPretrained',
    'checksum',
    'convert',
    'read_checkpoint',
    'read_state_dict',
]
