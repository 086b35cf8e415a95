"""Recall of annotated objects by proposals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.coco_json import read_objects
from ccop_mm.utils.errors import InputError


def evaluate(store: ProposalStore, annotation_file: str | Path) -> dict[str, Any]:
    """Computes recall and overlap of the boxes of a COCO json.

    Images are matched by file name, because ids of a folder differ from those of a json. Crowd regions and boxes
    without area are not objects. An image that has no proposals is included: its objects count as missed. Images are
    left out if they are not in the store, or if the json states another size (for example, because it ignores the EXIF
    orientation).

    Args:
        store (ProposalStore): Proposals.
        annotation_file (str | Path): COCO json with ``bbox`` (x, y, width, height).

    Returns:
        dict: ``images`` (number compared), ``images_left_out``, ``objects``, ``boxes_per_image``; ``recall_50`` and
        ``recall_70``, the fraction of objects that some box overlaps with an IoU of at least 0.5 or 0.7;
        ``mean_best_overlap``, the mean over objects of the highest IoU with a box (Uijlings et al., IJCV 2013).

    Raises:
        InputError: If the json is invalid, or the compared images contain no object.
    """
    pairs, num_left_out = match_images(store, annotation_file)
    num_boxes = [len(boxes) for _, boxes, _ in pairs]
    best = np.concatenate([_best_overlaps(objects, boxes) for _, boxes, objects in pairs])
    return {
        'images': len(num_boxes),
        'images_left_out': num_left_out,
        'objects': len(best),
        'boxes_per_image': float(np.mean(num_boxes)),
        'recall_50': float(np.mean(best >= 0.5)),
        'recall_70': float(np.mean(best >= 0.7)),
        'mean_best_overlap': float(np.mean(best)),
    }


def match_images(
    store: ProposalStore, annotation_file: str | Path
) -> tuple[list[tuple[tuple[int, int], np.ndarray, np.ndarray]], int]:
    """Pairs the proposals and the ground-truth boxes of the images that a store and a COCO json have in common.

    Args:
        store (ProposalStore): Proposals.
        annotation_file (str | Path): COCO json with boxes.

    Returns:
        tuple[list[tuple], int]: For each common image ``(height, width)``, (n, 4) proposals and (m, 4) ground-truth
        boxes, both xyxy in pixels; and the number of images of the json that are left out, see :func:`evaluate`.

    Raises:
        InputError: If the json is invalid, or the common images contain no object.
    """
    images, objects = read_objects(annotation_file)
    image_id_by_name = {store.file_name(image_id): image_id for image_id in store.image_ids.tolist()}
    pairs = []
    for image in images:
        image_id = image_id_by_name.get(image['file_name'])
        if image_id is not None and _has_size(image, store.size(image_id)):
            ground_truth_boxes = objects.get(image['id'], np.empty((0, 4)))
            pairs.append((store.size(image_id), store.boxes(image_id), ground_truth_boxes))
    if not any(len(ground_truth_boxes) for *_, ground_truth_boxes in pairs):
        raise InputError(
            f'no object of {annotation_file} is in an image of the proposals: both need the same images and file names'
        )
    return pairs, len(images) - len(pairs)


def _has_size(image: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Returns whether the height and width of an ``images`` entry, where present, equal ``size``."""
    height, width = size
    return image.get('height', height) == height and image.get('width', width) == width


def _best_overlaps(objects: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Computes the (n,) highest IoU of each object (n, 4) with any box (m, 4); 0 without boxes."""
    if not len(objects) or not len(boxes):
        return np.zeros(len(objects))
    import torch  # imported on use: generating proposals does not need it

    from ccop_mm.utils.boxes import pairwise_iou

    return pairwise_iou(torch.from_numpy(objects), torch.from_numpy(boxes).double()).amax(dim=1).numpy()
