"""Hooks of a training run, one per module."""

from .accumulation_hook import GradientAccumulationHook
from .checkpoint_hook import SafeCheckpointHook
from .compile_hook import CompileHook
from .curriculum_hook import SpatialCurriculumHook
from .first_iteration_hook import FirstIterationHook
from .health_hook import TrainingHealthHook
from .iteration_seed_hook import IterationSeedHook
from .preflight_hook import PreflightHook
from .probe_hook import ProbeHook
from .stop_hook import StopHook
from .unreadable_image_hook import UnreadableImageHook
from .view_statistics_hook import ViewStatisticsHook

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
