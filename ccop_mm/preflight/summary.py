"""Describes model and schedule of a run for the last line of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config

from ccop_mm.preflight.arguments import type_name
from ccop_mm.preflight.coco_table import CocoTable
from ccop_mm.preflight.findings import Report, format_value
from ccop_mm.preflight.splits import Split
from ccop_mm.utils.run_config import expected_world_size


def describe_model(cfg: Config) -> str | None:
    """Describes the architecture, such as ``'MaskRCNN with ResNet-50-FPN'``; None without a model."""
    model = cfg.get('model')
    if not isinstance(model, Mapping) or not model.get('type'):
        return None
    parts = [_class_names(model.get(name)) for name in ('backbone', 'neck')]
    backbone = model.get('backbone')
    if isinstance(backbone, Mapping) and 'depth' in backbone:
        parts[0] = f'{parts[0]}-{backbone["depth"]}'
    encoder = '-'.join(part for part in parts if part)
    return f'{type_name(model)} with {encoder}' if encoder else type_name(model)


def _class_names(config: Any) -> str:
    """Joins the class names of a list of necks by ``+``; returns that of any other part of a model."""
    return '+'.join(map(type_name, config)) if isinstance(config, (list, tuple)) else type_name(config)


def describe_schedule(cfg: Config, num_images: int | None) -> str | None:
    """Describes the length of a training, such as ``'540 steps of 64'``; None if it is not known.

    Args:
        cfg (Config): Training config.
        num_images (int, optional): Number of images of an epoch.
    """
    loader, loop = cfg.get('train_dataloader'), cfg.get('train_cfg')
    if not isinstance(loader, Mapping) or not isinstance(loop, Mapping):
        return None
    # A step of the optimizer is meant, which accumulates the gradients of several iterations.
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batch_size, epochs, iterations = loader.get('batch_size') or 1, loop.get('max_epochs'), loop.get('max_iters')
    # Other values are reported by ccop_mm.preflight.config.check_values.
    if not all(_is_positive(number) for number in (accumulated, batch_size, epochs or 1, iterations or 1)):
        return None
    batch_size *= expected_world_size(cfg) or 1
    if not iterations:
        if num_images is None or not epochs:
            return None
        per_epoch = num_images / batch_size
        iterations = epochs * (math.floor(per_epoch) if loader.get('drop_last') else math.ceil(per_epoch))
    return f'{math.ceil(iterations / accumulated):,} steps of {batch_size * accumulated:,}'


def _is_positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and number > 0


def filter_images(table: CocoTable, used: np.ndarray, split: Split) -> np.ndarray:
    """Returns the images that ``filter_cfg`` leaves in a dataset, (m,) bool.

    Args:
        table (CocoTable): Content of the json.
        used (np.ndarray): (n,) bool, annotations of the classes in use, each of an image of the json.
        split (Split): Dataset.
    """
    kept = np.ones(table.num_images, dtype=bool)
    options = split.config.get('filter_cfg') or {}
    if split.config.get('test_mode'):
        return kept
    if options.get('filter_empty_gt'):
        rows = table.image_rows[used]
        kept[:] = False
        kept[rows[rows >= 0]] = True
    if options.get('min_keypoints'):
        rows = np.flatnonzero(used & ~table.is_crowd)
        labeled = [sum(flag > 0 for flag in (table.keypoints[row] or [])[2::3]) for row in rows]
        per_image = np.bincount(table.image_rows[rows], weights=labeled, minlength=table.num_images)
        kept &= per_image >= options['min_keypoints']
    return kept & ~(table.sizes.min(axis=1) < options.get('min_size', 0))


def check_indices(split: Split, num_images: int, report: Report) -> bool:
    """Checks that ``indices`` of a dataset is a number of images, or a list of positions that exist.

    Args:
        split (Split): Dataset.
        num_images (int): Number of its images after ``filter_cfg``.
        report (Report): Receives at most one finding.

    Returns:
        bool: Whether it is.
    """
    indices, where = split.config.get('indices'), f'{split.key}.indices'
    if indices is None or type(indices) is int:
        return True
    if not isinstance(indices, (list, tuple)) or not all(type(index) is int for index in indices):
        report.error(where, f'is {format_value(indices)}', 'set a number of images, or a list of positions')
        return False
    absent = [index for index in indices if not -num_images <= index < num_images]
    if absent:
        report.error(where, f'the dataset of {num_images:,} images has no position {absent[0]}', 'remove it')
    return not absent


def select_images(kept: np.ndarray, indices: Any) -> np.ndarray:
    """Returns the images that ``indices`` of a dataset leaves, (m,) bool.

    Args:
        kept (np.ndarray): (m,) bool, images after ``filter_cfg``.
        indices (Any): Number of the first images, for a negative number of the last ones, or a list of positions.
            None leaves all.
    """
    if indices is None:
        return kept
    rows = np.flatnonzero(kept)
    first = slice(indices) if isinstance(indices, int) and indices >= 0 else slice(indices, None)
    selected = np.zeros_like(kept)
    selected[rows[first if isinstance(indices, int) else list(indices)]] = True
    return selected


def count(number: int, singular: str, plural: str) -> str:
    """Formats a number with its noun, such as ``'2,881 images'``."""
    return f'{number:,} {singular if number == 1 else plural}'


def total(numbers: Sequence[int | None]) -> int | None:
    """Returns the sum, or None if a number is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None
