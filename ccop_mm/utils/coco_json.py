"""Reads COCO json files and writes subsets of them."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write


class BoxAnnotation(NamedTuple):
    """An entry of a COCO json that has a box.

    Attributes:
        bbox (tuple[float, float, float, float]): ``(x, y, width, height)`` in pixels, as in the file.
        entry (Mapping): All values of the entry.
    """

    bbox: tuple[float, float, float, float]
    entry: Mapping[str, Any]

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """The box as ``(x1, y1, x2, y2)``."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height

    @property
    def has_area(self) -> bool:
        """Whether width and height are positive."""
        _, _, width, height = self.bbox
        return width > 0 and height > 0


@dataclass
class AnnotatedImage:
    """An image and its annotated objects.

    Attributes:
        path (Path): Image file.
        shape (tuple[int, int]): Height and width in pixels according to the json.
        boxes (np.ndarray): (n, 4) float32 xyxy in pixels, clipped to the image; n is at least 1.
        labels (np.ndarray): (n,) int64 category ids.
    """

    path: Path
    shape: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path (str | Path): JSON file.

    Returns:
        dict: The object.

    Raises:
        InputError: If the file is missing, is not JSON or does not contain an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from None
    except ValueError as error:
        raise InputError(f'{path} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise InputError(f'{path} is not a COCO json: expected an object with "images", got a {type(content).__name__}')
    return content


def read_images(content: Mapping[str, Any], path: str | Path) -> list[dict[str, Any]]:
    """Validates the ``images`` entries of a COCO json.

    Args:
        content (Mapping): Result of :func:`read_json`.
        path (str | Path): Path of the json, for messages.

    Returns:
        list[dict]: At least one entry, each with an integer ``id`` of at least 0 and a ``file_name``.

    Raises:
        InputError: If there is no entry, or an entry lacks either of them.
    """
    images = content.get('images')
    if not isinstance(images, list) or not images:
        raise InputError(f'{path} lists no images: a COCO json has "images", each with "id" and "file_name"')
    for image in images:
        valid = isinstance(image, dict) and isinstance(image.get('file_name'), str) and type(image.get('id')) is int
        if not valid or not 0 <= image['id'] < 2**63:
            raise InputError(
                f'{path}: an image needs a "file_name" and an integer "id" of at least 0, got {_shortened(image)}'
            )
    return images


def read_boxes(entries: Any, path: str | Path) -> dict[Any, list[BoxAnnotation]]:
    """Groups the boxes of a COCO json, or of a list of detection results, by image.

    Crowd regions are left out; boxes without area are not.

    Args:
        entries (Any): The ``annotations`` of a json, or a list of results; validated here.
        path (str | Path): Path of the json, for messages.

    Returns:
        dict[Any, list[BoxAnnotation]]: Image id -> boxes in the order of the file.

    Raises:
        InputError: If ``entries`` is not a list, or an entry lacks "image_id" or a "bbox" of four numbers.
    """
    if not isinstance(entries, list):
        raise InputError(f'{path} has no "annotations", a list of entries with "image_id" and "bbox"')
    boxes: dict[Any, list[BoxAnnotation]] = {}
    for entry in entries:
        try:
            if not entry.get('iscrowd'):
                x, y, width, height = map(float, entry['bbox'])
                boxes.setdefault(entry['image_id'], []).append(BoxAnnotation((x, y, width, height), entry))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f'{path}: an annotation needs "image_id" and "bbox" (x, y, width, height), got {_shortened(entry)}'
            ) from None
    return boxes


def write_subset(content: Mapping[str, Any], out: str | Path, image_ids: Collection[int | str]) -> tuple[int, int]:
    """Writes a COCO json that contains some of the images and their annotations, in the order of ``content``.

    All other fields, such as the categories, are copied unchanged.

    Args:
        content (Mapping): A COCO json with ``images`` and ``annotations``, for example the result of :func:`read_json`.
        out (str | Path): File to write.
        image_ids (Collection[int | str]): Ids of the images to keep; a set for fast look-up.

    Returns:
        tuple[int, int]: Number of images and number of annotations written.
    """
    images = [image for image in content['images'] if image['id'] in image_ids]
    annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] in image_ids]
    with atomic_write(out, 'w') as file:
        json.dump({**content, 'images': images, 'annotations': annotations}, file)
    return len(images), len(annotations)


def class_names(annotation_file: str | Path) -> dict[int, str]:
    """Reads the category names of a COCO json.

    Args:
        annotation_file (str | Path): COCO json.

    Returns:
        dict[int, str]: Category id -> name.

    Raises:
        InputError: If the file cannot be read, or a category lacks "id" or "name".
    """
    try:
        return {category['id']: category['name'] for category in read_json(annotation_file).get('categories', [])}
    except (KeyError, TypeError):
        raise InputError(f'{annotation_file}: each of its "categories" needs "id" and "name"') from None


def read_objects(annotation_file: str | Path) -> tuple[list[dict[str, Any]], dict[int, np.ndarray]]:
    """Reads the images and the ground-truth boxes of a COCO json.

    Crowd regions and boxes without area are left out. Boxes are not clipped.

    Args:
        annotation_file (str | Path): COCO json with boxes.

    Returns:
        tuple[list[dict], dict[int, np.ndarray]]: The ``images`` entries; image id -> (n, 4) float64 xyxy boxes of the
        images that have any.

    Raises:
        InputError: If the file is missing or is not a COCO json with boxes.
    """
    content = read_json(annotation_file)
    images = read_images(content, annotation_file)
    objects = {}
    for image_id, annotations in read_boxes(content.get('annotations'), annotation_file).items():
        boxes = [annotation.xyxy for annotation in annotations if annotation.has_area]
        if boxes:
            objects[image_id] = np.array(boxes)
    return images, objects


def read_annotated_images(
    annotation_file: str | Path, image_root: str | Path, min_side: float = 1.0
) -> list[AnnotatedImage]:
    """Reads all images of a COCO json that have a box, in the order of the file, without opening them.

    Crowd regions are left out. Boxes are clipped to the image; the number of those dropped as too small is logged.

    Args:
        annotation_file (str | Path): COCO json with boxes and category ids.
        image_root (str | Path): Folder that its file names are relative to.
        min_side (float): Smallest width and height in pixels of a clipped box.

    Returns:
        list[AnnotatedImage]: At least one image.

    Raises:
        InputError: If the file or the folder is missing, the file is not a COCO json with boxes, or no box is left.
    """
    annotation_file, image_root = Path(annotation_file), Path(image_root)
    if not image_root.is_dir():
        raise InputError(f'{image_root} is not a folder: pass the folder with the images of {annotation_file}')
    content = read_json(annotation_file)
    annotations = read_boxes(content.get('annotations'), annotation_file)
    try:
        images = [
            (image['id'], image_root / image['file_name'], int(image['height']), int(image['width']))
            for image in content['images']
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f'{annotation_file}: each of its "images" needs "id", "file_name", "height" and "width"'
        ) from None
    found, num_dropped = [], 0
    for image_id, path, height, width in images:
        boxes, labels = _boxes_and_labels(annotations.pop(image_id, []), annotation_file)
        boxes = boxes.clip(0, [width, height, width, height])
        keep = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)
        num_dropped += int((~keep).sum())
        if keep.any():
            found.append(AnnotatedImage(path, (height, width), boxes[keep].astype(np.float32), labels[keep]))
    if annotations:
        raise InputError(
            f'{annotation_file}: {len(annotations)} image ids of its annotations are not among its images, for example '
            f'{next(iter(annotations))!r}'
        )
    if num_dropped:
        from mmengine.logging import print_log  # imports torch

        message = f'{annotation_file}: dropped {num_dropped} boxes with a side below {min_side:g} px'
        print_log(message, 'current', logging.WARNING)
    if not found:
        raise InputError(f'{annotation_file} contains no usable box')
    return found


def _boxes_and_labels(annotations: list[BoxAnnotation], path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes of an image as (n, 4) float64 xyxy, and their category ids as (n,) int64."""
    try:
        labels = np.array([float(annotation.entry['category_id']) for annotation in annotations]).astype(np.int64)
    except (KeyError, TypeError, ValueError):
        raise InputError(f'{path}: each of its "annotations" needs a numeric "category_id"') from None
    return np.array([annotation.xyxy for annotation in annotations], np.float64).reshape(-1, 4), labels


def _shortened(value: Any) -> str:
    """Formats a JSON value for a message."""
    return json.dumps(value)[:100]
