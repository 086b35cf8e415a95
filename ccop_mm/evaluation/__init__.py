"""Probes that measure a model's features on annotated images."""

from .knn_recall import DEFAULT_KS, chance_recall, knn_recall
from .knn_report import format_knn_report, knn_report
from .load_model import load_model
from .object_features import extract_object_features
from .pointing_game import (
    PointingResult,
    box_similarity,
    format_pointing_report,
    pointing_hits,
    read_pointing_result,
    write_pointing_result,
)
from .pointing_probe import measure_pointing_accuracy

__all__ = [
    'DEFAULT_KS',
    'PointingResult',
    'box_similarity',
    'chance_recall',
    'extract_object_features',
    'format_knn_report',
    'format_pointing_report',
    'knn_recall',
    'knn_report',
    'load_model',
    'measure_pointing_accuracy',
    'pointing_hits',
    'read_pointing_result',
    'write_pointing_result',
]
