"""Hooks, and the entry points of tools/train.py and tools/test.py (:mod:`ccop_mm.engine.launch`)."""

from .hooks import (
    CompileHook,
    IterationSeedHook,
    ProbeHook,
    SafeCheckpointHook,
    SpatialCurriculumHook,
    TrainingHealthHook,
    ViewStatisticsHook,
)

__all__ = [
    'CompileHook',
    'IterationSeedHook',
    'ProbeHook',
    'SafeCheckpointHook',
    'SpatialCurriculumHook',
    'TrainingHealthHook',
    'ViewStatisticsHook',
]
