"""Annotated boxes in the place of proposals: what a perfect search would find (the paper's Table 5)."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.proposals.evaluate import read_objects
from ccop_mm.proposals.sources import BadPhoto, Photo


@dataclass(frozen=True)
class AnnotatedPhoto(Photo):
    """A photo with its true boxes.

    Args:
        boxes (np.ndarray | None): (n, 4) float64 xyxy in pixels; None if the annotations do not list the photo.
        size (tuple[int | None, int | None]): Height and width, where the annotations tell.
    """

    boxes: np.ndarray | None = field(default=None, compare=False)
    size: tuple = (None, None)

    __str__ = Photo.__str__


def annotate(photos, annotation_file):
    """Adds true boxes to photos, matched by file name: ids of a folder and of a json differ.

    Crowd regions and boxes without area are no objects.

    Args:
        photos (list[Photo]): The photos.
        annotation_file (str | Path): COCO json with ``bbox`` (x, y, w, h).

    Returns:
        tuple[list[AnnotatedPhoto], str]: The same photos, and the BLAKE2b digest of the file in hexadecimal digits.

    Raises:
        InputError: If the json is at fault or lists none of the photos.
    """
    images, objects = read_objects(annotation_file)
    entries = {image['file_name']: image for image in images}
    annotated = []
    for photo in photos:
        entry = entries.get(photo.file_name)
        boxes = None if entry is None else objects.get(entry['id'], np.empty((0, 4)))
        size = (None, None) if entry is None else (entry.get('height'), entry.get('width'))
        annotated.append(AnnotatedPhoto(photo.image_id, photo.file_name, photo.path, boxes, size))
    if all(photo.boxes is None for photo in annotated):
        raise InputError(f'{annotation_file} lists none of the photos, the first of which is {photos[0].file_name}')
    return annotated, hashlib.blake2b(Path(annotation_file).read_bytes(), digest_size=16).hexdigest()


def true_boxes(photo, shape):
    """The true boxes within a photo.

    Args:
        photo (AnnotatedPhoto): The photo.
        shape (tuple[int, int]): Height and width in pixels as it was read.

    Returns:
        np.ndarray: (n, 4) float32 xyxy in pixels, cut to the photo; what has no area then is left out.

    Raises:
        BadPhoto: If the annotations do not list the photo, or are of a photo of another size.
    """
    if photo.boxes is None:
        raise BadPhoto('the annotations do not list it')
    height, width = shape
    if photo.size[0] not in (None, height) or photo.size[1] not in (None, width):
        raise BadPhoto(
            f'{width}x{height} pixels, but {photo.size[1]}x{photo.size[0]} in the annotations: were they made without '
            'regard to the EXIF orientation?'
        )
    boxes = photo.boxes.clip(0, [width, height, width, height]).astype(np.float32)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
