"""Checks of a config, its data and its weights before anything slow is built."""

from .findings import Finding, Level, PreflightError, Report
from .run import check_test, check_training

__all__ = ['Finding', 'Level', 'PreflightError', 'Report', 'check_test', 'check_training']
