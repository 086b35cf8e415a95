"""Hooks, and the entry points of tools/train.py and tools/test.py (:mod:`ccop_mm.engine.launch`)."""

from .hooks import (
    CompileHook,
    FirstIterationHook,
    GradientAccumulationHook,
    IterationSeedHook,
    PreflightHook,
    ProbeHook,
    SafeCheckpointHook,
    SpatialCurriculumHook,
    StopHook,
    TrainingHealthHook,
    UnreadableImageHook,
    ViewStatisticsHook,
)

__all__ = [
    'CompileHook',
    'FirstIterationHook',
    'GradientAccumulationHook',
    'IterationSeedHook',
    'PreflightHook',
    'ProbeHook',
    'SafeCheckpointHook',
    'SpatialCurriculumHook',
    'StopHook',
    'TrainingHealthHook',
    'UnreadableImageHook',
    'ViewStatisticsHook',
]
