"""Checks of the masks in a COCO json."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccop_mm.preflight.coco_table import NUMBERS, CocoTable
from ccop_mm.preflight.findings import Report

#: Largest coordinate that is taken for a normalized one, and the smallest side of a box that contradicts it.
MAX_NORMALIZED, MIN_SIDE = 1.5, 4.0
#: Smallest number of coordinates of a polygon.
MIN_COORDINATES = 6
#: Masks whose bounding box has a smaller IoU with the box belong to another object or to another size of the image.
MIN_IOU = 0.2
#: Fraction of unusual masks up to which they are a warning.
MAX_UNUSUAL = 0.05


def check_masks(table: CocoTable, used: np.ndarray, report: Report) -> None:
    """Checks the content of the masks, of a sample if there are many.

    mmdet and pycocotools end with a traceback at a mask of another format, and ignore polygons with fewer than three
    points.

    Args:
        table (CocoTable): Content of the json.
        used (np.ndarray): (n,) bool, annotations of the classes in use.
        report (Report): Receives the findings.
    """
    groups: dict[str, list[int]] = {kind: [] for kind in ('malformed', 'size', 'relative', 'degenerate', 'elsewhere')}
    rows = [row for row in table.segmentations if used[row] and table.has_segmentation[row]]
    for row in rows:
        kind = _classify(table.segmentations[row], table.boxes[row], table.image_sizes[row])
        if kind is not None:
            groups[kind].append(row)
    texts = {
        'malformed': (
            'have a "segmentation" that is neither a list of polygons nor an RLE with "size" and "counts"',
            'write [[x1, y1, x2, y2, ...], ...] in pixels, or an RLE',
            0.0,
        ),
        'size': (
            'have an RLE of another size than their image',
            '"size" is (height, width) of the image: encode the masks again',
            0.0,
        ),
        'relative': ('have a polygon relative to the image size', 'multiply the coordinates by width and height', 0.0),
        'degenerate': (
            'have a polygon with fewer than three points or an odd number of values',
            'mmdet ignores these objects: correct or remove the polygons',
            MAX_UNUSUAL,
        ),
        'elsewhere': (
            'have a polygon that does not fit their box',
            'check that polygons and boxes are those of the same object, in pixels of the image',
            1.0,
        ),
    }
    for kind, (problem, fix, limit) in texts.items():
        found = np.zeros(table.num_annotations, dtype=bool)
        found[groups[kind]] = True
        if found.any():
            add = report.error if len(groups[kind]) > limit * len(rows) else report.warning
            checked = '' if len(table.segmentations) == table.num_annotations else 'sampled '
            add(
                table.path,
                f'{len(groups[kind]):,} of {len(rows):,} {checked}objects {problem}, the first are '
                f'{table.examples(found)}',
                fix,
            )


def _classify(segmentation: Any, box: np.ndarray, size: np.ndarray) -> str | None:
    """Returns what is unusual about a mask, None if nothing is.

    Args:
        segmentation (Any): Value in the json.
        box (np.ndarray): (4,) x, y, width, height.
        size (np.ndarray): (2,) width and height of the image.
    """
    if isinstance(segmentation, Mapping):
        shape = segmentation.get('size')
        if not isinstance(segmentation.get('counts'), (str, list)) or not isinstance(shape, list) or len(shape) != 2:
            return 'malformed'
        return None if np.isnan(size).any() or shape == [size[1], size[0]] else 'size'
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return 'malformed'
    if not all(NUMBERS.issuperset(map(type, part)) for part in segmentation):
        return 'malformed'
    valid = [part for part in segmentation if len(part) >= MIN_COORDINATES and len(part) % 2 == 0]
    if not valid:
        return 'degenerate'
    points = np.concatenate([np.array(part, dtype=np.float64).reshape(-1, 2) for part in valid])
    if np.abs(points).max() <= MAX_NORMALIZED and box[2:].min() >= MIN_SIDE:
        return 'relative'
    first, second = points.min(axis=0), points.max(axis=0)
    overlap = np.minimum(second, box[:2] + box[2:]) - np.maximum(first, box[:2])
    intersection = overlap.clip(min=0).prod()
    union = (second - first).prod() + box[2:].prod() - intersection
    return 'elsewhere' if intersection < MIN_IOU * union else None
