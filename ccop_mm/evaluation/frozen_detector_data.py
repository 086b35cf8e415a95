"""Images and boxes for the frozen-detector probe, resized as the network receives them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np

from ccop_mm.evaluation.object_features import load_annotated_image
from ccop_mm.utils.coco_json import AnnotatedImage, BoxAnnotation, read_boxes, read_images, read_json
from ccop_mm.utils.errors import InputError

#: Maximum long side of a resized image relative to its short side; images that are longer are reduced.
MAX_ASPECT = 2


@dataclass(frozen=True)
class DetectionImage:
    """An image of a detection dataset, with or without objects.

    Attributes:
        image_id (int): Id in the COCO json.
        annotated (AnnotatedImage): File, annotated size, and boxes clipped to the image; possibly without boxes.
        crowds (np.ndarray): (m, 4) float32 xyxy crowd regions in pixels, clipped to the image.
    """

    image_id: int
    annotated: AnnotatedImage
    crowds: np.ndarray

    def resized_shape(self, size: int) -> tuple[int, int]:
        """Returns height and width of the image when its short side is ``size``.

        The long side is at most :data:`MAX_ASPECT` times as long; a longer image is reduced to that and has a shorter
        short side.
        """
        height, width = self.annotated.shape
        scale = min(size / min(height, width), MAX_ASPECT * size / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def scale_factor(self, size: int) -> tuple[float, float]:
        """Returns the horizontal and vertical factor of :meth:`resized_shape`."""
        height, width = self.resized_shape(size)
        return width / self.annotated.shape[1], height / self.annotated.shape[0]

    def load(self, size: int) -> np.ndarray | None:
        """Loads and resizes the image: (h, w, 3) uint8 BGR; None, after a log message, if it cannot be used."""
        image = load_annotated_image(self.annotated)
        if image is None:
            return None
        height, width = self.resized_shape(size)
        return mmcv.imresize(image, (width, height))

    def resized_boxes(self, boxes: np.ndarray, size: int, flip: bool) -> np.ndarray:
        """Scales boxes (n, 4) of the image to its resized version, or to that version mirrored horizontally."""
        boxes = boxes * np.array(self.scale_factor(size) * 2, np.float32)
        if flip:
            width = self.resized_shape(size)[1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        return boxes


def read_detection_images(
    annotation_file: str | Path, image_root: str | Path, limit: int | None = None
) -> list[DetectionImage]:
    """Reads all images of a COCO json, including those without boxes, in the order of the file.

    Boxes and crowd regions are clipped to the image and dropped if they are then less than 1 px wide or high.

    Args:
        annotation_file (str | Path): COCO json with boxes and category ids.
        image_root (str | Path): Folder that its file names are relative to.
        limit (int, optional): Return a fixed random subset of this many images.

    Returns:
        list[DetectionImage]: At least one image.

    Raises:
        InputError: The file or the folder is missing, the file is not a COCO json with boxes, an image id occurs twice
            or is missing, none of the images has a usable box, or ``limit`` is below 1.
    """
    annotation_file, image_root = Path(annotation_file), Path(image_root)
    if not image_root.is_dir():
        raise InputError(f'{image_root} is not a folder; pass the folder with the images of {annotation_file}')
    content = read_json(annotation_file)
    images = read_images(content, annotation_file)
    entries = content.get('annotations')
    boxes = read_boxes(entries, annotation_file)
    regions = read_boxes([{**entry, 'iscrowd': 0} for entry in entries if entry.get('iscrowd')], annotation_file)
    _check_ids(images, (*boxes, *regions), annotation_file)
    found = []
    for image in images:
        shape = _shape(image, annotation_file)
        objects, crowds = boxes.get(image['id'], []), regions.get(image['id'], [])
        labels = [_category_id(box, annotation_file) for box in objects]
        for box in crowds:
            _category_id(box, annotation_file)  # AP needs those, too
        clipped, keep = _clip(objects, shape)
        clipped_crowds, _ = _clip(crowds, shape)
        annotated = AnnotatedImage(image_root / image['file_name'], shape, clipped, np.array(labels, np.int64)[keep])
        found.append(DetectionImage(image['id'], annotated, clipped_crowds))
    if limit is not None and limit < 1:
        raise InputError(f'at least 1 image is required, got {limit}')
    if limit is not None and limit < len(found):
        rows = np.sort(np.random.default_rng(0).permutation(len(found))[:limit])
        found = [found[row] for row in rows]
    if not any(len(image.annotated.boxes) for image in found):
        raise InputError(f'{annotation_file}: none of {len(found)} images has a usable box')
    return found


def _check_ids(images: list[dict], annotated: Sequence[int], path: Path) -> None:
    """Checks that the ids of ``images`` entries differ and include the image ids of the annotations."""
    counts = Counter(image['id'] for image in images)
    repeated = [image_id for image_id, count in counts.items() if count > 1]
    if repeated:
        raise InputError(f'{path}: image id {repeated[0]} occurs {counts[repeated[0]]} times; ids must differ')
    unknown = [image_id for image_id in annotated if image_id not in counts]
    if unknown:
        raise InputError(f'{path}: annotations refer to image id {unknown[0]!r}, which is not among its images')


def _shape(image: dict, path: Path) -> tuple[int, int]:
    """Returns height and width of an ``images`` entry."""
    try:
        height, width = int(image['height']), int(image['width'])
    except (KeyError, TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f'{path}: image id {image["id"]} needs a positive "height" and "width"')
    return height, width


def _category_id(box: BoxAnnotation, path: Path) -> int:
    category_id = box.entry.get('category_id')
    if type(category_id) is not int:
        raise InputError(f'{path}: each of its "annotations" needs an integer "category_id", got {category_id!r}')
    return category_id


def _clip(boxes: list[BoxAnnotation], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to an image; returns those of at least 1 px per side, (n, 4) float32, and the mask of the kept."""
    height, width = shape
    clipped = np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4).clip(0, [width, height, width, height])
    keep = (clipped[:, 2:] - clipped[:, :2] >= 1).all(axis=1)
    return clipped[keep].astype(np.float32), keep
