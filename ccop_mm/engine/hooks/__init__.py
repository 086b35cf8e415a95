"""Hooks of a training run, one per module."""

from .checkpoint_hook import SafeCheckpointHook
from .compile_hook import CompileHook
from .curriculum_hook import SpatialCurriculumHook
from .health_hook import TrainingHealthHook
from .iteration_seed_hook import IterationSeedHook
from .probe_hook import ProbeHook
from .view_statistics_hook import ViewStatisticsHook

__all__ = [
    'CompileHook',
    'IterationSeedHook',
    'ProbeHook',
    'SafeCheckpointHook',
    'SpatialCurriculumHook',
    'TrainingHealthHook',
    'ViewStatisticsHook',
]
