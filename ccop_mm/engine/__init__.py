"""Hooks, and the entry points of tools/train.py and tools/test.py."""

from .curriculum_hook import SpatialCurriculumHook

__all__ = ['SpatialCurriculumHook']
