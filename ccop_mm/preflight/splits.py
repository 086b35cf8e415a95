"""Finds the datasets and evaluators of a detector's config."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from ccop_mm.preflight.arguments import find_class, type_name
from ccop_mm.utils.run_config import iterate_datasets

#: Modules whose datasets read a COCO json. Other subclasses of mmdet's ``CocoDataset`` may read another format.
COCO_READERS = ('mmdet.datasets.coco', 'ccop_mm.detection.coco_keypoint_dataset')
#: Modules whose datasets read XML files in the format of Pascal VOC.
VOC_READERS = ('mmdet.datasets.xml_style',)


@dataclass(frozen=True)
class Split:
    """A dataset of a data loader.

    Attributes:
        part (str): ``'train'``, ``'val'`` or ``'test'``.
        key (str): Config key of the dataset, e.g. ``'train_dataloader.dataset.datasets.0'``.
        config (ConfigDict): Config of the dataset.
        dataset_class (type): Class of the dataset.
        repeats (int): How often wrappers such as ``RepeatDataset`` repeat it.
    """

    part: str
    key: str
    config: ConfigDict
    dataset_class: type
    repeats: int = 1

    @property
    def reads_coco_json(self) -> bool:
        """Whether the dataset reads a COCO json as mmdet's ``CocoDataset`` does."""
        return self._reader in COCO_READERS

    @property
    def reads_voc_xml(self) -> bool:
        """Whether the dataset reads XML files as mmdet's ``XMLDataset`` does."""
        return self._reader in VOC_READERS

    @property
    def _reader(self) -> str | None:
        """Module of the class that reads the annotations."""
        owner = next((kind for kind in self.dataset_class.__mro__ if 'load_data_list' in vars(kind)), None)
        return None if owner is None else owner.__module__

    @property
    def is_remote(self) -> bool:
        """Whether annotations or images are in a remote storage, which is not checked."""
        prefixes = (self.config.get('data_prefix') or {}).values()
        paths = [self.config.get('data_root'), self.config.get('ann_file'), *prefixes]
        return bool(self.config.get('backend_args')) or any('://' in path for path in paths if isinstance(path, str))

    @property
    def annotation_file(self) -> str:
        """Path of the annotation file, or ``''`` if the config has none."""
        path = self.config.get('ann_file')
        return self._join(path) if isinstance(path, str) and path else ''

    @property
    def image_root(self) -> str | None:
        """Folder of the images, or None if ``data_prefix`` does not name it."""
        prefix = (self.config.get('data_prefix') or {}).get('img')
        return self._join(prefix) if isinstance(prefix, str) else None

    @property
    def voc_folders(self) -> tuple[str, str]:
        """Folders of the images and of the XML files of an ``XMLDataset``."""
        root = self._join((self.config.get('data_prefix') or {}).get('sub_data_root', ''))
        subfolders = (('img_subdir', 'JPEGImages'), ('ann_subdir', 'Annotations'))
        images, annotations = (os.path.join(root, self.config.get(key, default)) for key, default in subfolders)
        return images, annotations

    @property
    def metainfo(self) -> Mapping[str, Any]:
        """``metainfo`` of the config."""
        metainfo = self.config.get('metainfo') or {}
        return metainfo if isinstance(metainfo, Mapping) else {}

    @property
    def pipeline(self) -> list[Mapping[str, Any]]:
        """Transforms, including those inside wrappers such as ``RandomApply``."""
        return list(iterate_transforms(self.config.get('pipeline') or []))

    def _join(self, path: str) -> str:
        root = self.config.get('data_root') or ''
        return os.path.join(root, path) if root else path


def find_splits(cfg: Config, parts: Sequence[str]) -> list[Split]:
    """Returns the detection datasets of the data loaders of a config.

    Datasets of unknown type and those of other tasks are left out.

    Args:
        cfg (Config): Config of a run.
        parts (Sequence[str]): Any of ``'train'``, ``'val'`` and ``'test'``.
    """
    splits = []
    for part in parts:
        loader = cfg.get(f'{part}_dataloader')
        for number, single in enumerate(loader if isinstance(loader, (list, tuple)) else [loader]):
            key = f'{part}_dataloader.{number}' if isinstance(loader, (list, tuple)) else f'{part}_dataloader'
            for name, config, repeats in iterate_datasets((single or {}).get('dataset') or {}, f'{key}.dataset'):
                dataset_class = find_class(DATASETS, config.get('type'), cfg.get('default_scope') or 'mmengine')
                if isinstance(dataset_class, type) and _is_detection(dataset_class):
                    splits.append(Split(part, name, config, dataset_class, repeats))
    return splits


def find_evaluators(cfg: Config, part: str) -> list[tuple[str, ConfigDict]]:
    """Returns config key and config of each evaluator of ``'val'`` or ``'test'`` that computes COCO's metrics."""
    key = f'{part}_evaluator'
    evaluators = cfg.get(key) or []
    named = (
        [(f'{key}.{number}', evaluator) for number, evaluator in enumerate(evaluators)]
        if isinstance(evaluators, (list, tuple))
        else [(key, evaluators)]
    )
    return [
        (name, evaluator) for name, evaluator in named if type_name(evaluator) in ('CocoMetric', 'CocoKeypointMetric')
    ]


def iterate_transforms(pipeline: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the configs of all transforms of a pipeline, including those in arguments of other transforms."""
    for transform in pipeline:
        if isinstance(transform, (list, tuple)):
            yield from iterate_transforms(transform)
        elif isinstance(transform, Mapping):
            if 'type' in transform:
                yield transform
            yield from iterate_transforms([value for value in transform.values() if isinstance(value, (list, tuple))])


def _is_detection(dataset_class: type) -> bool:
    """Whether a dataset has boxes of ``classes``, which mmdet's detectors number in this order."""
    from mmdet.datasets import CocoDataset, CocoPanopticDataset, XMLDataset

    return issubclass(dataset_class, (CocoDataset, XMLDataset)) and not issubclass(dataset_class, CocoPanopticDataset)
