"""The content of a COCO json as arrays, for checks of all annotations at once."""

import contextlib
import functools
import gc
import itertools
import math
import operator
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated

#: Types of the numbers of a parsed json.
NUMBERS = frozenset({int, float})
#: Number of annotations that are converted at a time, so that their values remain in the processor's cache.
CHUNK_SIZE = 1024
#: Largest number of annotations whose segmentation is kept.
NUM_SEGMENTATIONS = 2000


@dataclass(eq=False)
class CocoTable:
    """Images, categories and annotations of a COCO json in the order of the file.

    Attributes:
        path (str): Path of the json, for messages.
        image_ids (list): Id of each of the m images.
        file_names (list[str]): File name of each image.
        sizes (np.ndarray): (m, 2) float64 width and height of each image, NaN where missing or not a positive number.
        category_ids (list): Id of each category.
        category_names (list): Name of each category.
        categories (list[Mapping]): Entries of the categories.
        annotation_ids (list): Id of each of the n annotations.
        image_rows (np.ndarray): (n,) int64 index of the image of each annotation, -1 if the json has no such image.
        category_rows (np.ndarray): (n,) int64 index of its category, -1 if the json has no such category.
        boxes (np.ndarray): (n, 4) float64 x, y, width, height; NaN in a row that is not four numbers.
        has_box (np.ndarray): (n,) bool, whether the annotation has a box of four numbers.
        areas (np.ndarray): (n,) float64, NaN where missing or not a number.
        has_area (np.ndarray): (n,) bool, whether the annotation has ``area``.
        has_numeric_area (np.ndarray): (n,) bool, whether its ``area`` is a number.
        has_segmentation (np.ndarray): (n,) bool, whether it has a segmentation that is not empty.
        segmentations (dict[int, Any]): Segmentations of a sample of the annotations, by row.
        is_crowd (np.ndarray): (n,) bool.
        has_crowd_flag (np.ndarray): (n,) bool, whether it has ``iscrowd``.
        has_numeric_crowd_flag (np.ndarray): (n,) bool, whether its ``iscrowd`` is a number or a boolean.
        keypoints (list): ``keypoints`` of each annotation, None where missing.
    """

    path: str
    image_ids: list[Any]
    file_names: list[str]
    sizes: np.ndarray
    category_ids: list[Any]
    category_names: list[Any]
    categories: list[Mapping[str, Any]]
    annotation_ids: list[Any]
    image_rows: np.ndarray
    category_rows: np.ndarray
    boxes: np.ndarray
    has_box: np.ndarray
    areas: np.ndarray
    has_area: np.ndarray
    has_numeric_area: np.ndarray
    has_segmentation: np.ndarray
    segmentations: dict[int, Any]
    is_crowd: np.ndarray
    has_crowd_flag: np.ndarray
    has_numeric_crowd_flag: np.ndarray
    keypoints: list[Any]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: str) -> 'CocoTable':
        """Converts a parsed json.

        Args:
            content (Mapping): Object with ``images`` and, optionally, ``annotations`` and ``categories``.
            path (str): Path of the json, for messages.

        Raises:
            InputError: The structure is not that of a COCO json.
        """
        images, categories, annotations = (
            _entries(content, name, path) for name in ('images', 'categories', 'annotations')
        )
        if not images:
            raise InputError(f'{path} lists no images: a COCO json has "images", each with "id" and "file_name"')
        image_ids, file_names = _column(images, 'images', 'id', path), _column(images, 'images', 'file_name', path)
        category_ids = _column(categories, 'categories', 'id', path)
        sizes = np.stack([_numbers([image.get(side) for image in images]) for side in ('width', 'height')], axis=1)
        sizes[~((sizes > 0) & np.isfinite(sizes))] = np.nan
        image_index, category_index = _RowIndex(image_ids), _RowIndex(category_ids)
        chunks = [
            _annotation_columns(annotations[start : start + CHUNK_SIZE], image_index, category_index, path)
            for start in range(0, max(len(annotations), 1), CHUNK_SIZE)
        ]
        return cls(
            path=path,
            image_ids=image_ids,
            file_names=file_names,
            sizes=sizes,
            category_ids=category_ids,
            category_names=_column(categories, 'categories', 'name', path),
            categories=categories,
            segmentations={
                row: annotations[row].get('segmentation')
                for row in range(0, len(annotations), math.ceil(len(annotations) / NUM_SEGMENTATIONS) or 1)
            },
            **{name: _join([chunk[name] for chunk in chunks]) for name in chunks[0]},
        )

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def num_annotations(self) -> int:
        """Number of annotations."""
        return len(self.annotation_ids)

    @functools.cached_property
    def image_sizes(self) -> np.ndarray:
        """(n, 2) float64 width and height of the image of each annotation, NaN where unknown."""
        sizes = np.concatenate([self.sizes, np.full((1, 2), np.nan)])  # row -1: no such image
        return np.asfortranarray(sizes[self.image_rows])

    def annotations_per_category(self) -> np.ndarray:
        """Counts the annotations of each category."""
        return np.bincount(self.category_rows[self.category_rows >= 0], minlength=len(self.category_ids))

    def rows_of_classes(self, classes: Sequence[str]) -> np.ndarray:
        """Returns for each annotation whether its category is one of the classes, (n,) bool."""
        used = np.array([name in classes for name in self.category_names] + [False], dtype=bool)
        return used[self.category_rows]

    def examples(self, mask: np.ndarray) -> str:
        """Formats the ids of the first annotations of a (n,) bool mask."""
        return format_truncated([repr(self.annotation_ids[row]) for row in np.flatnonzero(mask)], limit=3)


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pauses Python's cyclic garbage collector, which would visit the objects of a large json again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def duplicates(ids: Sequence[Hashable]) -> list[Any]:
    """Returns the ids that occur more than once."""
    return [] if len(set(ids)) == len(ids) else [item for item, count in Counter(ids).items() if count > 1]


def _annotation_columns(
    annotations: Sequence[Mapping[str, Any]],
    image_index: '_RowIndex',
    category_index: '_RowIndex',
    path: str,
) -> dict[str, Any]:
    """Converts annotations to the arrays and lists of a :class:`CocoTable`, by name.

    Args:
        annotations (Sequence[Mapping]): Some of the annotations of a json.
        image_index (_RowIndex): Rows of the images.
        category_index (_RowIndex): Rows of the categories.
        path (str): Path of the json, for messages.
    """
    ids, images, categories = (
        _column(annotations, 'annotations', key, path) for key in ('id', 'image_id', 'category_id')
    )
    boxes, has_box = _box_rows([annotation.get('bbox') for annotation in annotations])
    areas = [annotation.get('area') for annotation in annotations]
    crowd = [annotation.get('iscrowd') for annotation in annotations]
    return dict(
        annotation_ids=ids,
        image_rows=image_index.find(images),
        category_rows=category_index.find(categories),
        boxes=boxes,
        has_box=has_box,
        areas=_numbers(areas),
        has_area=_present(areas),
        has_numeric_area=_are_numbers(areas),
        has_segmentation=np.array([bool(annotation.get('segmentation')) for annotation in annotations], dtype=bool),
        is_crowd=np.array(list(map(bool, crowd)), dtype=bool),
        has_crowd_flag=_present(crowd),
        has_numeric_crowd_flag=_are_numbers(crowd, NUMBERS | {bool}),
        keypoints=[annotation.get('keypoints') for annotation in annotations],
    )


def _join(parts: Sequence[Any]) -> Any:
    """Joins arrays, or lists. Columns become contiguous because the checks compare columns."""
    if isinstance(parts[0], np.ndarray):
        return np.asfortranarray(np.concatenate(parts))
    return list(itertools.chain.from_iterable(parts))


class _RowIndex:
    """Finds the position of ids in a list.

    Args:
        ids (Sequence): Ids; of equal ones the last is found.
    """

    def __init__(self, ids: Sequence[Any]) -> None:
        self._rows = {item: row for row, item in enumerate(ids)}
        self._sorted: np.ndarray | None = None
        if set(map(type, ids)) == {int}:
            with contextlib.suppress(OverflowError):  # ids beyond 64 bits
                # Faster than the dict, whose entries of a large file are not in the processor's cache.
                self._sorted = np.array(sorted(self._rows), dtype=np.int64)
                self._order = np.array(list(map(self._rows.get, self._sorted.tolist())), dtype=np.int64)

    def find(self, references: Sequence[Any]) -> np.ndarray:
        """Returns the row of each id, (n,) int64; -1 for unknown ones."""
        if self._sorted is not None and set(map(type, references)) == {int}:
            with contextlib.suppress(OverflowError):
                wanted = np.array(references, dtype=np.int64)
                positions = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
                return np.where(self._sorted[positions] == wanted, self._order[positions], -1)
        return np.array(list(map(self._rows.get, references, itertools.repeat(-1))), dtype=np.int64)


def _entries(content: Mapping[str, Any], name: str, path: str) -> list[Mapping[str, Any]]:
    """Returns a list of the json; an empty one if it is missing."""
    entries = content.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InputError(f'{path}: "{name}" is a {type(entries).__name__}, but a COCO json has a list there')
    return entries


def _column(entries: Sequence[Any], name: str, key: str, path: str) -> list[Any]:
    """Returns a required value of all entries after checking that they are ids or names."""
    try:
        values = list(map(operator.itemgetter(key), entries))
    except (KeyError, TypeError):
        entry = next(entry for entry in entries if not isinstance(entry, dict) or key not in entry)
        raise InputError(f'{path}: each entry of "{name}" needs "{key}", got {str(entry)[:100]}') from None
    allowed = {str} if key in ('file_name', 'name') else {int, str, float}
    if not set(map(type, values)) <= allowed:
        value = next(value for value in values if type(value) not in allowed)
        raise InputError(
            f'{path}: "{key}" of an entry of "{name}" is {str(value)[:100]!r}, which is not an id or a name'
        )
    return values


def _present(values: Sequence[Any]) -> np.ndarray:
    """Returns whether values are not None, (n,) bool."""
    if None not in values:
        return np.ones(len(values), dtype=bool)
    return np.array([value is not None for value in values], dtype=bool)


def _are_numbers(values: Sequence[Any], types: Collection[type] = NUMBERS) -> np.ndarray:
    """Returns whether values have one of some types, (n,) bool; numbers as text and, by default, booleans do not."""
    if set(map(type, values)) <= set(types):
        return np.ones(len(values), dtype=bool)
    return np.array([type(value) in types for value in values], dtype=bool)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Converts values to float64, NaN for None and for everything that is not a number."""
    if set(map(type, values)) <= NUMBERS:
        return np.array(values, dtype=np.float64)
    return np.array([value if type(value) in NUMBERS else np.nan for value in values], dtype=np.float64)


def _box_rows(boxes: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Converts boxes to (n, 4) float64 and (n,) bool: whether a row is four numbers. Other rows are NaN."""
    count = len(boxes)
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}:
        values = list(itertools.chain.from_iterable(boxes))
        if set(map(type, values)) <= NUMBERS:
            return np.array(values, dtype=np.float64).reshape(count, 4), np.ones(count, dtype=bool)
    rows, valid = np.full((count, 4), np.nan), np.zeros(count, dtype=bool)
    for row, box in enumerate(boxes):
        if isinstance(box, (list, tuple)) and len(box) == 4 and NUMBERS.issuperset(map(type, box)):
            rows[row], valid[row] = box, True
    return rows, valid
