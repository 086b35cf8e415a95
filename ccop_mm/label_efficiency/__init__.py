"""Label efficiency: which initial weights give the best detector with few labels."""

from .report import StudyResult
from .study import run_study

__all__ = ['StudyResult', 'run_study']
