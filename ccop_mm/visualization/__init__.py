"""Figures as PNG or SVG files; no display is required."""

from .box_query_figure import collect_box_queries, plot_box_queries
from .curriculum_figure import load_jitter, plot_curriculum, sample_images
from .figure_file import check_figure_path, save_figure
from .proposal_figure import browse_proposals, plot_box_sizes, plot_boxes
from .training_figure import plot_curriculum_curves, plot_training_report
from .tsne_figure import compute_tsne, plot_tsne
from .views_figure import plot_views

__all__ = [
    'browse_proposals',
    'check_figure_path',
    'collect_box_queries',
    'compute_tsne',
    'load_jitter',
    'plot_box_queries',
    'plot_box_sizes',
    'plot_boxes',
    'plot_curriculum',
    'plot_curriculum_curves',
    'plot_training_report',
    'plot_tsne',
    'plot_views',
    'sample_images',
    'save_figure',
]
