"""Checks of keypoint datasets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccop_mm.preflight.arguments import type_name
from ccop_mm.preflight.coco_table import NUMBERS, CocoTable
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.splits import Split
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated

#: Number of objects whose keypoints are checked.
NUM_CHECKED = 2000
#: Largest coordinate that is taken for a normalized one.
MAX_NORMALIZED = 1.5
#: Words in names of keypoints that are exchanged in a mirrored image.
MIRRORED_WORDS = {'left': 'right', 'right': 'left', 'l': 'r', 'r': 'l'}


def read_skeleton(split: Split, report: Report) -> Mapping[str, Any] | None:
    """Returns the metainfo of a keypoint dataset; None for other datasets, or if the metainfo is invalid.

    Args:
        split (Split): Dataset.
        report (Report): Receives the findings.
    """
    if 'keypoint_names' not in {**getattr(split.dataset_class, 'METAINFO', {}), **split.metainfo}:
        return None
    load = getattr(split.dataset_class, '_load_metainfo', None)
    if load is None:
        return None
    try:
        return load(dict(split.metainfo))
    except InputError as error:
        report.error(f'{split.key}.metainfo', str(error), 'see docs/keypoint_rcnn.md')
        return None


def check_flip_pairs(skeleton: Mapping[str, Any], split: Split, report: Report) -> None:
    """Checks that keypoints of the left and the right side are pairs if the pipeline mirrors images.

    Args:
        skeleton (Mapping): Metainfo of the dataset.
        split (Split): Dataset.
        report (Report): Receives the findings.
    """
    if not any('Flip' in type_name(transform) and transform.get('prob') != 0 for transform in split.pipeline):
        return
    unpaired = unpaired_names(skeleton['keypoint_names'], skeleton.get('flip_pairs') or ())
    if unpaired:
        pairs = ', '.join(f'({left!r}, {right!r})' for left, right in unpaired)
        report.error(
            f'{split.key}.metainfo.flip_pairs',
            f'the pipeline mirrors images, but {len(unpaired)} pairs of keypoints are missing: {pairs}',
            'left and right would be exchanged in half of the training images: add the pairs',
        )


def unpaired_names(names: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Returns names that differ in left and right only and are not a pair, each combination once."""
    known = {frozenset(pair) for pair in pairs}
    mirrored = ((name, mirror_name(name)) for name in names)
    found = [
        (name, other) for name, other in mirrored if other != name and other in names and {name, other} not in known
    ]
    return [pair for number, pair in enumerate(found) if pair[::-1] not in found[:number]]


def mirror_name(name: str) -> str:
    """Exchanges the words left and right, or l and r, in a name such as ``left_eye``, ``eye.L`` or ``leftEye``."""

    def exchange(match: re.Match[str]) -> str:
        word = match.group()
        other = MIRRORED_WORDS.get(word.lower(), word)
        if other == word or word.islower():
            return other
        return other.upper() if word.isupper() else other.capitalize()

    return re.sub(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])', exchange, name)


def check_keypoints(
    table: CocoTable, used: np.ndarray, classes: Sequence[str], skeleton: Mapping[str, Any], key: str, report: Report
) -> None:
    """Checks the keypoints of a json against those of the metainfo.

    Args:
        table (CocoTable): Content of the json.
        used (np.ndarray): (n,) bool, annotations of the classes in use.
        classes (Sequence[str]): Classes of the dataset.
        skeleton (Mapping): Metainfo of the dataset.
        key (str): Config key of the dataset, for messages.
        report (Report): Receives the findings.
    """
    names = list(skeleton['keypoint_names'])
    for category in table.categories:
        listed = category.get('keypoints')
        if category['name'] in classes and listed and list(listed) != names:
            report.error(
                table.path,
                f'category {category["name"]!r} has the keypoints {format_truncated(listed, 20)}, but '
                f'{key}.metainfo.keypoint_names is {format_truncated(names, 20)}',
                'use the same names in the same order',
            )
    lengths = np.array([len(points) if isinstance(points, list) else 0 for points in table.keypoints], dtype=int)
    wrong = used & (lengths > 0) & (lengths != 3 * len(names))
    if wrong.any():
        report.error(
            table.path,
            f'{wrong.sum():,} of {used.sum():,} objects have another number of keypoints than {len(names)}, the first '
            f'are {table.examples(wrong)}',
            f'"keypoints" needs {3 * len(names)} values: x, y and visibility of each of {key}.metainfo.keypoint_names',
        )
    elif used.any() and not (used & (lengths > 0)).any():
        report.error(
            table.path,
            f'none of the {used.sum():,} objects has "keypoints"',
            'use a file with keypoints, such as person_keypoints_train2017.json',
        )
    _check_coordinates(table, np.flatnonzero(used & (lengths == 3 * len(names))), report)


def _check_coordinates(table: CocoTable, rows: np.ndarray, report: Report) -> None:
    """Checks the values of the keypoints of a sample of the objects.

    Args:
        table (CocoTable): Content of the json.
        rows (np.ndarray): Annotations with the right number of values.
        report (Report): Receives the findings.
    """
    rows = rows[:: max(1, len(rows) // NUM_CHECKED)]
    numeric = [row for row in rows if NUMBERS.issuperset(map(type, table.keypoints[row]))]
    if len(numeric) < len(rows):
        invalid = np.zeros(table.num_annotations, dtype=bool)
        invalid[np.setdiff1d(rows, numeric)] = True
        what = f'"keypoints" of {invalid.sum():,} of {len(rows):,} checked objects contain other values than numbers'
        report.error(table.path, f'{what}, the first are {table.examples(invalid)}', 'write numbers without quotes')
    if not numeric:
        return
    points = np.array([table.keypoints[row] for row in numeric], dtype=np.float64).reshape(len(numeric), -1, 3)
    labeled = points[..., 2] > 0
    size = np.nanmax(np.where(labeled[..., None], np.abs(points[..., :2]), np.nan), axis=(1, 2), initial=0)
    extended = table.boxes[numeric, 2:].min(axis=1) > 2 * MAX_NORMALIZED
    groups = (
        (
            ~np.isfinite(points).all(axis=(1, 2)),
            'contain NaN or infinity',
            'the loss would become NaN: correct the file',
        ),
        (
            labeled.any(axis=1) & (size <= MAX_NORMALIZED) & extended,
            'are relative to the image size',
            'multiply x and y by width and height of the image',
        ),
    )
    for found, problem, fix in groups:
        if found.any():
            mask = np.zeros(table.num_annotations, dtype=bool)
            mask[np.array(numeric)[found]] = True
            report.error(
                table.path,
                f'"keypoints" of {found.sum():,} of {len(rows):,} checked objects {problem}, the first are '
                f'{table.examples(mask)}',
                fix,
            )


def check_keypoint_head(model: Mapping[str, Any], skeleton: Mapping[str, Any], key: str, report: Report) -> None:
    """Checks that the keypoint head predicts as many keypoints as the dataset has.

    Args:
        model (Mapping): Config of the detector.
        skeleton (Mapping): Metainfo of the dataset.
        key (str): Config key of the dataset, for messages.
        report (Report): Receives the findings.
    """
    roi_head = model.get('roi_head')
    head = roi_head.get('keypoint_head') if isinstance(roi_head, Mapping) else None
    number = head.get('num_keypoints') if isinstance(head, Mapping) else None
    expected = len(skeleton['keypoint_names'])
    if isinstance(number, int) and number != expected:
        report.error(
            'model.roi_head.keypoint_head.num_keypoints',
            f'the head predicts {number} keypoints, but {key} has {expected}',
            f'set model.roi_head.keypoint_head.num_keypoints={expected}',
        )
