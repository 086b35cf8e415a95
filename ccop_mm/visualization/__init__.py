"""Figures fit to publish."""

from .curriculum_figure import draw_curriculum, load_jitter, sample_photos
from .figure_file import save_figure
from .views_figure import draw_views

__all__ = ['draw_curriculum', 'draw_views', 'load_jitter', 'sample_photos', 'save_figure']
