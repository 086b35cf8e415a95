"""Annotated boxes as candidates: an upper bound for any search (the paper's Table 5)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccop_mm.utils.coco_json import read_objects
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile, UnreadableImageError


@dataclass(frozen=True)
class AnnotatedImageFile(ImageFile):
    """An image file with its ground-truth boxes.

    Args:
        boxes (np.ndarray | None): (n, 4) float64 xyxy in pixels; None if the annotations do not list the image.
        size (tuple[int | None, int | None]): Height and width according to the annotations, None where they are absent.
    """

    boxes: np.ndarray | None = field(default=None, compare=False)
    size: tuple[int | None, int | None] = (None, None)


def annotate(images: Sequence[ImageFile], annotation_file: str | Path) -> tuple[list[AnnotatedImageFile], str]:
    """Adds ground-truth boxes to images.

    Images are matched by file name, because ids of a folder differ from those of a json. Crowd regions, and
    boxes that are not finite or have no area, are ignored.

    Args:
        images (Sequence[ImageFile]): Images to annotate.
        annotation_file (str | Path): COCO json with ``bbox`` (x, y, width, height).

    Returns:
        tuple[list[AnnotatedImageFile], str]: The same images, and the hexadecimal BLAKE2b digest of the json.

    Raises:
        InputError: If the json is invalid or lists none of the images.
    """
    entries, objects = read_objects(annotation_file)
    entry_by_name = {entry['file_name']: entry for entry in entries}
    annotated = []
    for image in images:
        entry = entry_by_name.get(image.file_name)
        boxes = None if entry is None else objects.get(entry['id'], np.empty((0, 4)))
        if boxes is not None:
            boxes = boxes[np.isfinite(boxes).all(axis=1)]
        size = (None, None) if entry is None else (entry.get('height'), entry.get('width'))
        annotated.append(AnnotatedImageFile(image.image_id, image.file_name, image.path, boxes, size))
    if all(image.boxes is None for image in annotated):
        raise InputError(
            f'{annotation_file} lists none of the images, the first of which is {images[0].file_name}: file names must '
            'be the same in both'
        )
    return annotated, hashlib.blake2b(Path(annotation_file).read_bytes(), digest_size=16).hexdigest()


def ground_truth_boxes(image_file: AnnotatedImageFile, shape: tuple[int, int]) -> np.ndarray:
    """Returns the ground-truth boxes of an image, clipped to it.

    Args:
        image_file (AnnotatedImageFile): Annotated image.
        shape (tuple[int, int]): Height and width in pixels of the decoded image.

    Returns:
        np.ndarray: (n, 4) float32 xyxy in pixels, without boxes that have no area after clipping.

    Raises:
        UnreadableImageError: If the annotations do not list the image, or state another size.
    """
    if image_file.boxes is None:
        raise UnreadableImageError('the annotations do not list it')
    height, width = shape
    annotated_height, annotated_width = image_file.size
    if annotated_height not in (None, height) or annotated_width not in (None, width):
        raise UnreadableImageError(
            f'{width}x{height} pixels, but {annotated_width}x{annotated_height} in the annotations: were they made '
            'without regard to the EXIF orientation?'
        )
    boxes = image_file.boxes.clip(0, [width, height, width, height]).astype(np.float32)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
