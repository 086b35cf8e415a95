"""Figures, fit to print: PNG or SVG, made without a display."""

from .box_query_figure import collect_box_queries, draw_box_queries
from .curriculum_figure import draw_curriculum, load_jitter, sample_photos
from .figure_file import check_figure_path, save_figure
from .proposal_figure import browse, draw_boxes, draw_sizes
from .training_figure import draw_curriculum_curves, draw_training_report
from .training_log import read_training_log
from .tsne_figure import class_names, draw_tsne, project
from .views_figure import draw_views

__all__ = [
    'browse',
    'check_figure_path',
    'class_names',
    'collect_box_queries',
    'draw_box_queries',
    'draw_boxes',
    'draw_curriculum',
    'draw_curriculum_curves',
    'draw_sizes',
    'draw_training_report',
    'draw_tsne',
    'draw_views',
    'load_jitter',
    'project',
    'read_training_log',
    'sample_photos',
    'save_figure',
]
