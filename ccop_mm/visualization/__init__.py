"""Figures fit to publish."""

from .curriculum_figure import draw_curriculum, load_jitter, sample_photos
from .figure_file import save_figure

__all__ = ['draw_curriculum', 'load_jitter', 'sample_photos', 'save_figure']
