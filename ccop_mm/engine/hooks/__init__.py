"""Hooks of a training run, one per module."""

from .accumulation_hook import GradientAccumulationHook
from .checkpoint_hook import SafeCheckpointHook
from .compile_hook import CompileHook
from .curriculum_hook import SpatialCurriculumHook
from .first_iteration_hook import FirstIterationHook
from .fixed_rate_hook import FixedRateHook
from .frozen_detector_hook import FrozenDetectorHook
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
    'FixedRateHook',
    'FrozenDetectorHook',
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
