"""Hooks, and the entry points of tools/train.py and tools/test.py."""

from .checkpoint_hook import SafeCheckpointHook
from .curriculum_hook import SpatialCurriculumHook
from .finite_loss_hook import FiniteLossHook, NonFiniteLossError
from .health_hook import TrainingHealthHook
from .probe_hook import ProbeHook
from .seed_hook import IterationSeedHook

__all__ = [
    'FiniteLossHook',
    'IterationSeedHook',
    'NonFiniteLossError',
    'ProbeHook',
    'SafeCheckpointHook',
    'SpatialCurriculumHook',
    'TrainingHealthHook',
]
