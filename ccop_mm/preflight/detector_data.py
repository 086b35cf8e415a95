"""Checks of the data of a detector against its config, and the description of data, model and schedule."""

import codecs
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from ccop_mm.preflight.arguments import closest, type_name
from ccop_mm.preflight.class_checks import check_categories, check_heads, check_splits_agree, read_classes
from ccop_mm.preflight.coco_table import CocoTable, paused_garbage_collection
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.image_checks import applies_orientation, check_images
from ccop_mm.preflight.json_checks import check_json, check_segmentations
from ccop_mm.preflight.keypoint_checks import check_flip_pairs, check_keypoint_head, check_keypoints, read_skeleton
from ccop_mm.preflight.resume import proposal_file
from ccop_mm.preflight.splits import Split, find_evaluators, find_splits
from ccop_mm.preflight.summary import (
    check_indices,
    count,
    describe_model,
    describe_schedule,
    filter_images,
    select_images,
    total,
)
from ccop_mm.preflight.voc_checks import check_voc
from ccop_mm.utils.coco_json import read_json
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.run_config import iterate_datasets
from ccop_mm.utils.text import format_truncated

#: Values of ``metric`` of mmdet's ``CocoMetric``.
COCO_METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')


def check_training_data(cfg: Config, report: Report) -> None:
    """Checks the training and validation data of a detector; describes those of a pre-training.

    Args:
        cfg (Config): Training config; not modified.
        report (Report): Receives the findings, and the number of images, boxes and steps.
    """
    num_images = _check_data(cfg, ('train', 'val'), report)
    if num_images is None:
        num_images = _describe_proposals(cfg, report)
    for part in (describe_model(cfg), describe_schedule(cfg, num_images)):
        if part:
            report.saw(part)


def check_test_data(cfg: Config, report: Report) -> None:
    """Checks the test data of a detector.

    Args:
        cfg (Config): Config of a detector; not modified.
        report (Report): Receives the findings, and the number of images and boxes.
    """
    if cfg.get('test_dataloader') is None:
        report.error('test_dataloader', 'the config has none', 'only detectors have a test')
        return
    _check_data(cfg, ('test',), report)
    model = describe_model(cfg)
    if model:
        report.saw(model)


class _Tables:
    """COCO json files of a run, each of which is read and checked once.

    Args:
        report (Report): Receives the findings.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._tables: dict[str, CocoTable | None] = {}

    def read(self, path: str, key: str) -> CocoTable | None:
        """Returns the content of a file; None, with an error in the report, if it is not a COCO json.

        Args:
            path (str): COCO json.
            key (str): Config key of the path, for messages.
        """
        path = os.path.normpath(path)
        if path not in self._tables:
            self._tables[path] = None
            if not Path(path).is_file():
                self._report.error(key, f'{path} does not exist', f'set {key} to the annotation file')
                return None
            try:
                _check_encoding(path)
                with paused_garbage_collection():
                    table = CocoTable.from_json(read_json(path), path)
            except InputError as error:
                self._report.error(path, str(error).removeprefix(path).lstrip(': '), f'correct the file, or {key}')
                return None
            check_json(table, self._report)
            self._tables[path] = table
        return self._tables[path]


def _check_encoding(path: str) -> None:
    """Raises an error for a byte order mark, at which pycocotools ends with a traceback."""
    with contextlib.suppress(OSError), open(path, 'rb') as file:  # reading the json reports that it cannot be read
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            raise InputError('the file starts with a byte order mark, save it as UTF-8 without')


def _check_data(cfg: Config, parts: Sequence[str], report: Report) -> int | None:
    """Checks the datasets and evaluators of some data loaders.

    Returns:
        int | None: Number of images of the first part, counting repeats; None if it is not known.
    """
    splits = find_splits(cfg, parts)
    classes = {split.key: names for split in splits if (names := read_classes(split, report)) is not None}
    # Detectors with text queries do not have one output per class, and are tested with any classes.
    if classes and not any(split.config.get('return_classes') for split in splits):
        check_splits_agree(classes, report)
        key, names = next(iter(classes.items()))
        check_heads(cfg, names, key, report)
    tables = _Tables(report)
    checked: set[tuple[str, str, bool]] = set()
    checked_voc: set[tuple[str, ...]] = set()
    numbers: list[tuple[int, int] | None] = []
    for split in splits:
        table = _read_split(split, tables, report)
        described = None
        if table is not None and split.key in classes:
            described = _check_split(cfg, split, table, classes[split.key], report)
            root, orients = split.image_root or '', applies_orientation(split.pipeline)
            if (table.path, root, orients) not in checked:
                checked.add((table.path, root, orients))
                check_images(table, root, split.pipeline, split.key, report)
        elif split.reads_voc_xml and not split.is_remote and split.key in classes:
            files = (split.annotation_file, *split.voc_folders)
            if files not in checked_voc:
                checked_voc.add(files)
                check_voc(split, classes[split.key], report)
        if split.part == parts[0]:
            numbers.append(described)
    for part in parts:
        own = [split for split in splits if split.part == part]
        for key, evaluator in find_evaluators(cfg, part):
            _check_evaluator(key, evaluator, own, classes, tables, report)
    num_images = total([number and number[0] for number in numbers])
    num_boxes = total([number and number[1] for number in numbers])
    if num_images is not None:
        report.saw(count(num_images, 'image', 'images'))
    if classes:
        report.saw(count(len(next(iter(classes.values()))), 'class', 'classes'))
    if num_boxes is not None:
        report.saw(count(num_boxes, 'box', 'boxes'))
    return num_images


def _read_split(split: Split, tables: _Tables, report: Report) -> CocoTable | None:
    """Returns the annotations of a dataset; None if they cannot be read, are remote or have another format."""
    if not split.reads_coco_json or split.is_remote or not split.annotation_file:
        return None
    root = split.image_root
    if root is None:
        report.error(f'{split.key}.data_prefix', "it has no 'img'", "set data_prefix=dict(img='FOLDER/')")
        return None
    if not os.path.isdir(root or '.'):
        report.error(f'{split.key}.data_prefix.img', f'folder {root} does not exist', 'set data_root and data_prefix')
        return None
    return tables.read(split.annotation_file, f'{split.key}.ann_file')


def _check_split(
    cfg: Config, split: Split, table: CocoTable, classes: Sequence[str], report: Report
) -> tuple[int, int] | None:
    """Checks the annotations of a dataset; returns the number of its images and boxes, None if it is not usable."""
    if not check_categories(table, classes, split, report):
        return None
    used = table.rows_of_classes(classes) & (table.image_rows >= 0)
    if not table.rows_of_classes(classes).any():
        add = report.error if split.part == 'train' else report.warning
        add(table.path, f'it has no annotations of {format_truncated(classes, 3)}', 'use a file with annotations')
    if any(transform.get('with_mask') for transform in split.pipeline):
        check_segmentations(table, used, f'with_mask=True in {split.key}.pipeline', report)
    skeleton = read_skeleton(split, report)
    if skeleton is not None:
        if split.part == 'train':
            check_flip_pairs(skeleton, split, report)
        check_keypoints(table, used, classes, skeleton, split.key, report)
        if split.part != 'val':
            check_keypoint_head(cfg.get('model') or {}, skeleton, split.key, report)
    if used.any() and table.is_crowd[used].all():
        add = report.error if split.part == 'train' else report.warning
        what = f'all {used.sum():,} objects have "iscrowd" 1, which marks groups that are neither trained nor counted'
        add(table.path, what, 'set "iscrowd" to 0 for single objects')
    kept = filter_images(table, used, split)
    if check_indices(split, int(kept.sum()), report):
        kept = select_images(kept, split.config.get('indices'))
    if split.part == 'train' and not kept.any() and used.any():
        limits = {key: split.config[key] for key in ('filter_cfg', 'indices') if split.config.get(key) is not None}
        what = f'no image of {table.path} is left after {", ".join(f"{key}={value}" for key, value in limits.items())}'
        report.error(split.key, what, 'change these settings')
    num_images, num_boxes = int(kept.sum()), int(np.count_nonzero(kept[table.image_rows[used]]))
    return num_images * split.repeats, num_boxes * split.repeats


def _check_evaluator(
    key: str, evaluator: ConfigDict, splits: list[Split], classes: dict[str, list[str]], tables: _Tables, report: Report
) -> None:
    """Checks that the annotation file of an evaluator has the images and classes of the dataset it evaluates."""
    own_file = evaluator.get('ann_file')
    readable = [split for split in splits if split.reads_coco_json and not split.is_remote and split.key in classes]
    if not readable or len(readable) < len(splits) or (isinstance(own_file, str) and '://' in own_file):
        return
    path = own_file or readable[0].annotation_file
    table = tables.read(path, f'{key}.ann_file')
    datasets = [tables.read(split.annotation_file, f'{split.key}.ann_file') for split in readable]
    if table is None or any(dataset is None for dataset in datasets):
        return
    names = classes[readable[0].key]
    if evaluator.get('use_mp_eval') and 0 in table.annotation_ids:
        report.error(
            f'{key}.use_mp_eval',
            f'this mode counts annotation id 0 of {path} as missed',
            f'set {key}.use_mp_eval=False, or number the annotations from 1',
        )
    metrics = evaluator.get('metric', 'bbox')
    metrics = [metrics] if isinstance(metrics, str) else metrics
    for metric in metrics:
        if type_name(evaluator) == 'CocoMetric' and metric not in COCO_METRICS:
            nearest = closest(str(metric), COCO_METRICS)
            fix = f'did you mean {nearest!r}' if nearest else f'use any of {", ".join(COCO_METRICS)}'
            report.error(f'{key}.metric', f'{metric!r} is unknown', fix)
    if 'segm' in metrics:
        used = table.rows_of_classes(names) & (table.image_rows >= 0)
        check_segmentations(table, used, f"'segm' in {key}.metric", report)
    for split in readable:
        if split.config.get('indices') is not None:
            report.warning(
                f'{split.key}.indices',
                f'only some images of {path} are tested, while {key} counts the objects of all others as missed',
                'write these images to a json of their own, for example with tools/misc/coco_subset.py',
            )
    if any(dataset is table for dataset in datasets):
        return
    check_categories(table, names, readable[0], report)
    tested = {image_id for dataset in datasets if dataset is not None for image_id in dataset.image_ids}
    listed = set(table.image_ids)
    for ids, problem in (
        (listed - tested, 'are not in the dataset: their objects would count as missed'),
        (tested - listed, 'are in the dataset only: their detections cannot be evaluated'),
    ):
        if ids:
            report.error(
                f'{key}.ann_file',
                f'{len(ids):,} images of {path} {problem}, the first ids are '
                f'{format_truncated(sorted(ids, key=str), 3)}',
                f'use {readable[0].annotation_file} for both',
            )


def _describe_proposals(cfg: Config, report: Report) -> int | None:
    """Adds the content of the proposals files of a pre-training; returns the number of images, None if unknown."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    images: list[int | None] = []
    proposals: list[int | None] = []
    for _, part, repeats in iterate_datasets(dataset, 'train_dataloader.dataset'):
        counts = _count_proposals(part)
        images.append(counts and counts[0] * repeats)
        proposals.append(counts and counts[1] * repeats)
    num_images, num_proposals = total(images), total(proposals)
    if num_images is not None and num_proposals is not None:
        report.saw(count(num_images, 'image', 'images'))
        report.saw(count(num_proposals, 'proposal', 'proposals'))
    return num_images


def _count_proposals(dataset: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the number of images and of boxes of a proposals file; the dataset verifies the file when it is built.

    Args:
        dataset (Mapping): Config of a dataset.

    Returns:
        tuple[int, int] | None: None for other datasets and files, and if the file cannot be read.
    """
    path = proposal_file(dataset)
    if path is None or not path.endswith('.npz') or not type_name(dataset).endswith('ProposalDataset'):
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:  # reads the arrays that are used
            offsets = arrays['offsets']
        return len(offsets) - 1, int(offsets[-1])
    except Exception:  # a damaged file may raise anything; the dataset reports it
        return None
