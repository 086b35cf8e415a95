"""Checks and adapts the data loaders of a config before they are built."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.run_config import iterate_datasets


def check_data_paths(cfg: Config, part: str) -> None:
    """Checks that annotation files and image folders exist, before the model is built.

    Args:
        cfg (Config): Config of a run.
        part (str): ``'train'``, ``'val'`` or ``'test'``: checks ``<part>_dataloader`` and ``<part>_evaluator``. Without
            the data loader, nothing is checked.

    Raises:
        InputError: A file or folder on the local disk does not exist.
    """
    loader, evaluators = cfg.get(f'{part}_dataloader'), cfg.get(f'{part}_evaluator')
    if loader is None:
        return
    for _, dataset, _ in iterate_datasets(loader.get('dataset'), f'{part}_dataloader.dataset'):
        root = dataset.get('data_root') or ''
        # With backend_args the images may be in a remote storage.
        prefixes = {} if dataset.get('backend_args') else dict(dataset.get('data_prefix') or {})
        if not _loads_segmentation(dataset.get('pipeline')):
            prefixes.pop('seg', None)  # COCO's panoptic configs have it, and those for instances inherit it
        for path in [dataset.get('ann_file'), *prefixes.values()]:
            if isinstance(path, str) and path and '://' not in f'{root}{path}' and not Path(root, path).exists():
                raise InputError(
                    f'{Path(root, path)} does not exist; set the location of your data with --cfg-options '
                    f'{part}_dataloader.dataset.data_root=..., .ann_file=..., .data_prefix...='
                )
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators or {}]:
        path = evaluator.get('ann_file')
        if isinstance(path, str) and '://' not in path and not Path(path).exists():
            raise InputError(
                f'annotation file {path} of the evaluator does not exist; set it with --cfg-options '
                f'{part}_evaluator.ann_file=...'
            )


def _loads_segmentation(pipeline: Any) -> bool:
    """Returns whether a pipeline may read segmentation maps: by mmdet's loaders, or a transform of another project."""
    for transform in pipeline or []:
        name = str(transform.get('type')).rpartition('.')[2] if isinstance(transform, dict) else ''
        if name == 'LoadPanopticAnnotations' or (name == 'LoadAnnotations' and transform.get('with_seg')):
            return True
        if 'Seg' in name:
            return True
    return False


def tolerate_unreadable_images(cfg: Config, loader: str, unreadable: str) -> None:
    """Replaces the image loading transform of a detector's pipelines by one that tolerates unreadable images.

    See :class:`ccop_mm.datasets.LoadReadableImage`. Config files keep ``LoadImageFromFile`` because mmdet's inferencers
    search the test pipeline for that name, also in the config stored in a checkpoint. A training or test run therefore
    modifies only the pipelines that it executes.

    Args:
        cfg (Config): Config of a run, modified in place. Nothing changes outside mmdet's scope.
        loader (str): Name of the data loader, e.g. ``'train_dataloader'``.
        unreadable (str): See :class:`ccop_mm.datasets.LoadReadableImage`.
    """
    if cfg.get('default_scope') != 'mmdet' or cfg.get(loader) is None:
        return
    cfg[loader] = copy.deepcopy(cfg[loader])  # val_dataloader and test_dataloader are often the same object
    for _, dataset, _ in iterate_datasets(cfg[loader].get('dataset'), f'{loader}.dataset'):
        for transform in dataset.get('pipeline') or []:
            if transform.get('type') in ('LoadImageFromFile', 'mmdet.LoadImageFromFile'):
                transform.update(type='LoadReadableImage', unreadable=unreadable)


def fit_worker_options(cfg: Config) -> None:
    """Removes the options of data loaders without workers that torch accepts only with workers.

    Args:
        cfg (Config): Config of a run, modified in place.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if isinstance(loader, dict) and not loader.get('num_workers', 0):
            for option in ('persistent_workers', 'prefetch_factor', 'multiprocessing_context'):
                loader.pop(option, None)
