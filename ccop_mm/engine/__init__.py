"""Hooks, and the entry points of tools/train.py and tools/test.py."""

from .checkpoint_hook import SafeCheckpointHook
from .compile_hook import CompileHook
from .curriculum_hook import SpatialCurriculumHook
from .finite_loss_hook import FiniteLossHook, NonFiniteLossError
from .health_hook import TrainingHealthHook
from .probe_hook import ProbeHook
from .seed_hook import IterationSeedHook
from .view_statistics_hook import ViewStatisticsHook

__all__ = [
    'CompileHook',
    'FiniteLossHook',
    'IterationSeedHook',
    'NonFiniteLossError',
    'ProbeHook',
    'SafeCheckpointHook',
    'SpatialCurriculumHook',
    'TrainingHealthHook',
    'ViewStatisticsHook',
]
