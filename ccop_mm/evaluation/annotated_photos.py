"""Photos with boxes, read from a COCO json."""

import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ccop_mm.errors import InputError
from ccop_mm.proposals.sources import read_json


@dataclass
class AnnotatedPhoto:
    """One photo and its objects.

    Attributes:
        path (Path): The file.
        shape (tuple[int, int]): Height and width in pixels, as the annotations give them.
        boxes (np.ndarray): (n, 4) float32 xyxy in pixels, inside the photo; n is at least 1.
        labels (np.ndarray): (n,) int64 category ids.
    """

    path: Path
    shape: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray


def read_annotated_photos(
    annotation_file: str | Path, image_root: str | Path, min_side: float = 1.0
) -> list[AnnotatedPhoto]:
    """All photos of a COCO json that have a box, in the file's order, crowds left out; no photo is opened.

    Args:
        annotation_file (str | Path): A COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        min_side (float): Boxes less wide or high than this many pixels, once clipped to the photo, are dropped; a log
            line tells how many.

    Raises:
        InputError: If the file or the folder is missing, the file is not a COCO json, or no box is left.
    """
    annotation_file, image_root = Path(annotation_file), Path(image_root)
    if not image_root.is_dir():
        raise InputError(f'{image_root}: no such folder; name the folder with the photos of {annotation_file}')
    try:
        photos, dropped = _collect(read_json(annotation_file), image_root, min_side)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{annotation_file}: not in COCO format ({type(error).__name__}: {error})') from None
    if dropped:
        print_log(f'{annotation_file}: {dropped} boxes under {min_side:g} px dropped', 'current', logging.WARNING)
    if not photos:
        raise InputError(f'{annotation_file}: it holds no usable box')
    return photos


def _collect(data: dict, image_root: Path, min_side: float) -> tuple[list[AnnotatedPhoto], int]:
    """The photos that keep a box, and the number of boxes dropped."""
    objects = defaultdict(list)
    for annotation in data['annotations']:
        if not annotation.get('iscrowd', 0):
            objects[annotation['image_id']].append((*annotation['bbox'], annotation['category_id']))
    photos, dropped = [], 0
    for image in data['images']:
        rows = np.array(objects.pop(image['id'], []), np.float64).reshape(-1, 5)
        width, height = int(image['width']), int(image['height'])
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)  # xywh -> xyxy
        boxes = boxes.clip(0, [width, height, width, height])
        keep = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)
        dropped += int((~keep).sum())
        if keep.any():
            photos.append(
                AnnotatedPhoto(
                    path=image_root / image['file_name'],
                    shape=(height, width),
                    boxes=boxes[keep].astype(np.float32),
                    labels=rows[keep, 4].astype(np.int64),
                )
            )
    if objects:
        raise ValueError(f'{len(objects)} image ids of annotations are not among the images')
    return photos, dropped
