"""Checks of the content of a COCO json: ids, boxes, areas, masks and image sizes."""

import numpy as np

from ccop_mm.preflight.coco_table import CocoTable, duplicates
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.mask_checks import check_masks
from ccop_mm.utils.text import format_truncated

#: Fraction of its image's side by which any box may exceed its image without a warning.
MAX_EXCESS = 0.05
#: Largest fraction of objects that may be lost with a warning; above, the run is not started.
MAX_LOST_FRACTION = 0.1
#: Number of pixels by which a box may exceed its image: annotation tools round differently.
TOLERANCE = 2.0
#: Largest coordinate that is taken for a normalized one; annotations may exceed the image slightly.
MAX_NORMALIZED = 1.5
#: Smallest number of boxes from which their convention is inferred.
MIN_BOXES = 4
#: Fraction of boxes that must be impossible in COCO's convention before another one is considered.
MIN_UNUSUAL = 0.05
#: Boxes of which none reaches beyond this fraction of width and height are probably not in pixels of the images.
MAX_REACH = 0.5
#: Smallest number of boxes from which this is inferred.
MIN_BOXES_OF_REACH = 20
#: Fraction of boxes that must fit another convention.
MIN_FITTING = 0.99


def check_json(table: CocoTable, report: Report) -> None:
    """Checks everything that does not depend on the config.

    Args:
        table (CocoTable): Content of the json.
        report (Report): Receives the findings.
    """
    _check_ids(table, report)
    _check_sizes(table, report)
    if table.num_annotations:
        _check_references(table, report)
        _check_boxes(table, report)
        _check_areas(table, report)


def check_segmentations(table: CocoTable, used: np.ndarray, reason: str, report: Report) -> None:
    """Checks that all objects have a mask, which mmdet and pycocotools look up without a default.

    Args:
        table (CocoTable): Content of the json.
        used (np.ndarray): (n,) bool, annotations of the classes in use.
        reason (str): Config key that requires masks.
        report (Report): Receives the findings.
    """
    missing = used & ~table.has_segmentation
    if missing.any():
        report.error(
            table.path,
            f'{missing.sum():,} of {used.sum():,} objects have no "segmentation", the first are '
            f'{table.examples(missing)}',
            f'{reason} requires masks: add them, or train and test boxes only',
        )
    check_masks(table, used, report)


def _check_ids(table: CocoTable, report: Report) -> None:
    for kind, ids, effect in (
        ('image', table.image_ids, 'only the last image of an id would be used'),
        ('annotation', table.annotation_ids, 'only the last object of an id would be used'),
        ('category', table.category_ids, 'only the last category of an id would be used'),
    ):
        repeated = duplicates(ids)
        if repeated:
            report.error(
                table.path,
                f'{len(repeated):,} {kind} ids occur more than once: {format_truncated(repeated, 3)}',
                f'{effect}: give each {kind} its own id',
            )
    repeated = duplicates(table.file_names)
    if repeated:
        report.warning(
            table.path,
            f'{len(repeated):,} file names belong to more than one image: {format_truncated(repeated, 3)}',
            'merge the annotations of each file into one image',
        )


def _check_sizes(table: CocoTable, report: Report) -> None:
    invalid = np.isnan(table.sizes).any(axis=1)
    if invalid.any():
        row = int(np.flatnonzero(invalid)[0])
        width, height = table.sizes[row]
        report.error(
            table.path,
            f'{invalid.sum():,} of {table.num_images:,} images have no valid "width" and "height", the first is '
            f'{table.file_names[row]} (width {width:g}, height {height:g})',
            'add the size of each image in pixels',
        )


def _check_references(table: CocoTable, report: Report) -> None:
    for kind, rows, effect in (
        ('category', table.category_rows, 'their objects would count as background'),
        ('image', table.image_rows, 'their objects would be ignored'),
    ):
        unknown = rows < 0
        if unknown.any():
            add = report.error if unknown.mean() > MAX_LOST_FRACTION or kind == 'category' else report.warning
            article = 'an' if kind == 'image' else 'a'
            add(
                table.path,
                f'{unknown.sum():,} of {len(rows):,} annotations have {article} {kind}_id that is not in the json, '
                f'the first annotations are {table.examples(unknown)}',
                f'{effect}: list the missing {kind} ids, or remove the annotations',
            )


def _check_boxes(table: CocoTable, report: Report) -> None:
    total = table.num_annotations
    missing = ~table.has_box
    if missing.any():
        report.error(
            table.path,
            f'{missing.sum():,} of {total:,} annotations have no "bbox" of four numbers, the first are '
            f'{table.examples(missing)}',
            'add the box as (x, y, width, height) in pixels, or remove the annotations',
        )
    infinite = table.has_box & ~np.isfinite(table.boxes).all(axis=1)
    if infinite.any():
        report.error(
            table.path,
            f'{infinite.sum():,} of {total:,} boxes contain NaN or infinity, the first are {table.examples(infinite)}',
            'the loss would become NaN: correct or remove the annotations',
        )
    finite = table.has_box & ~infinite
    known = finite & np.isfinite(table.image_sizes).all(axis=1)
    convention = infer_convention(table.boxes[known], table.image_sizes[known])
    if convention is not None:
        name, index = convention
        row = int(np.flatnonzero(known)[index])
        box = ', '.join(f'{value:g}' for value in table.boxes[row])
        report.error(
            table.path,
            f'the boxes look like {name}, for example ({box}) of annotation {table.annotation_ids[row]!r}',
            'a COCO json has (x, y, width, height) in pixels: convert the boxes',
        )
        return
    x, y, width, height = table.boxes.T
    image_width, image_height = table.image_sizes.T
    with np.errstate(invalid='ignore'):  # comparisons with NaN are False
        empty = finite & ((width <= 0) | (height <= 0))
        outside = (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
        outside &= known & ~empty
        limit = np.maximum(TOLERANCE, MAX_EXCESS * table.image_sizes)
        exceeding = _exceed(table.boxes, table.image_sizes, limit) & known & ~empty & ~outside
    _report_lost(table, empty, 'boxes have no area', report)
    _report_lost(table, outside, 'boxes are outside their image', report)
    if exceeding.any():
        report.warning(
            table.path,
            f'{exceeding.sum():,} of {total:,} boxes exceed their image by more than {MAX_EXCESS:.0%} of its side, '
            f'the first are {table.examples(exceeding)}',
            'check that the boxes and the sizes in the json belong to the same version of the images',
        )
    reach = _reach(table.boxes[known], table.image_sizes[known])
    if reach is not None:
        report.warning(
            table.path,
            f'no box reaches beyond {reach[0]:.0%} of the width and {reach[1]:.0%} of the height of its image',
            'check that the boxes are in pixels of these images, and not in percent or of smaller ones',
        )


def _reach(boxes: np.ndarray, sizes: np.ndarray) -> tuple[float, float] | None:
    """Returns the largest right and lower edge relative to the image if they are suspiciously small, otherwise None.

    Args:
        boxes (np.ndarray): (n, 4) finite x, y, width, height.
        sizes (np.ndarray): (n, 2) width and height of the image of each box.
    """
    if len(boxes) < MIN_BOXES_OF_REACH:
        return None
    right, lower = ((boxes[:, axis] + boxes[:, 2 + axis]).astype(float) / sizes[:, axis] for axis in (0, 1))
    reach = float(right.max()), float(lower.max())
    return reach if max(reach) < MAX_REACH else None


def infer_convention(boxes: np.ndarray, sizes: np.ndarray) -> tuple[str, int] | None:
    """Recognizes boxes that are not (x, y, width, height) in pixels.

    Args:
        boxes (np.ndarray): (n, 4) finite values as in the json.
        sizes (np.ndarray): (n, 2) width and height of the image of each box.

    Returns:
        tuple[str, int] | None: The convention that the boxes seem to have, and the index of the first box that
        contradicts COCO's; None if nothing does.
    """
    if not len(boxes):
        return None
    # A placeholder of zeros fits every convention.
    relative = boxes.any(axis=1) & (np.abs(boxes) <= MAX_NORMALIZED).all(axis=1) & (sizes > MAX_NORMALIZED).all(axis=1)
    if relative.mean() >= MIN_UNUSUAL:
        return 'coordinates relative to the image size', int(np.argmax(relative))
    exceeding = _exceed(boxes, sizes, TOLERANCE)
    if len(boxes) < MIN_BOXES or exceeding.mean() < MIN_UNUSUAL:
        return None
    first, second = boxes[:, :2], boxes[:, 2:]
    corners = (second >= first) & (second <= sizes + TOLERANCE) & (first >= -TOLERANCE)
    if corners.all(axis=1).mean() >= MIN_FITTING:
        return '(x1, y1, x2, y2)', int(np.argmax(exceeding))
    centers = (first - second / 2 >= -TOLERANCE) & (first + second / 2 <= sizes + TOLERANCE)
    if centers.all(axis=1).mean() >= MIN_FITTING:
        return '(center x, center y, width, height)', int(np.argmax(exceeding))
    return None


def _exceed(boxes: np.ndarray, sizes: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    """Returns whether boxes (x, y, width, height) exceed their image by more than a limit in pixels, (n,) bool."""
    first, second = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return ((first < -limit) | (second > sizes + limit)).any(axis=1)


def _report_lost(table: CocoTable, lost: np.ndarray, problem: str, report: Report) -> None:
    """Reports objects that mmdet drops without a message: an error if they are many."""
    if lost.any():
        add = report.error if lost.mean() > MAX_LOST_FRACTION else report.warning
        add(
            table.path,
            f'{lost.sum():,} of {len(lost):,} {problem}, the first are {table.examples(lost)}',
            'mmdet ignores these objects: correct or remove the annotations',
        )


def _check_areas(table: CocoTable, report: Report) -> None:
    missing = table.has_box & ~table.has_area
    if missing.any():
        report.warning(
            table.path,
            f'{missing.sum():,} of {table.num_annotations:,} annotations have no "area", the first are '
            f'{table.examples(missing)}',
            'the area of the polygon, mask or box is used, on which AP by size and keypoint AP depend',
        )
    invalid = table.has_area & ~table.has_numeric_area
    if invalid.any():
        report.error(
            table.path,
            f'{invalid.sum():,} of {table.num_annotations:,} annotations have an "area" that is not a number, the '
            f'first are {table.examples(invalid)}',
            'mmdet cannot read them: write a number without quotation marks, or remove "area"',
        )
    with np.errstate(invalid='ignore'):
        has_extent = (table.boxes[:, 2:] >= 1).all(axis=1)
        empty = table.has_numeric_area & has_extent & ~(table.areas > 0)
    if empty.any():
        add = report.error if empty.mean() > MAX_LOST_FRACTION else report.warning
        add(
            table.path,
            f'{empty.sum():,} of {table.num_annotations:,} annotations have an "area" of 0 or less, or NaN, '
            f'although their box is not empty, the first are {table.examples(empty)}',
            'mmdet ignores these objects, and keypoints never match: remove "area" to use that of the polygon or box',
        )
    invalid = table.has_crowd_flag & ~table.has_numeric_crowd_flag
    if invalid.any():
        report.error(
            table.path,
            f'{invalid.sum():,} of {table.num_annotations:,} annotations have an "iscrowd" that is not a number, the '
            f'first are {table.examples(invalid)}',
            'any text, also "0", marks a group, which is not trained: write 0 or 1 without quotation marks',
        )
    if not table.has_crowd_flag.all():
        absent = ~table.has_crowd_flag
        report.warning(
            table.path,
            f'{absent.sum():,} of {table.num_annotations:,} annotations have no "iscrowd", the first are '
            f'{table.examples(absent)}',
            'they count as single objects: set "iscrowd" to 1 for groups',
        )
