"""Figures fit to publish."""

from .curriculum_figure import draw_curriculum, load_jitter, sample_photos
from .figure_file import save_figure
from .proposal_figure import browse, draw_boxes, draw_sizes
from .views_figure import draw_views

__all__ = [
    'browse',
    'draw_boxes',
    'draw_curriculum',
    'draw_sizes',
    'draw_views',
    'load_jitter',
    'sample_photos',
    'save_figure',
]
