"""How well proposals cover annotated objects."""

import numpy as np
import torch

from ccop_mm.boxes import pairwise_iou
from ccop_mm.errors import InputError
from ccop_mm.proposals.sources import read_images, read_json


def evaluate(store, annotation_file):
    """Compares proposals with the boxes of a COCO json.

    Photos are matched by file name: ids of a folder and of a json differ. Crowd regions, and boxes without area, are no
    objects. A photo in the store without any box counts: its objects are missed. Photos that are not in the store, or
    whose size there is not the json's (a json written without regard to EXIF orientation), are left out.

    Args:
        store (ProposalStore): The proposals.
        annotation_file (str | Path): COCO json with ``bbox`` (x, y, w, h).

    Returns:
        dict: ``photos``, ``photos_left_out``, ``objects`` and ``boxes_per_photo`` of the photos compared;
        ``recall_50`` and ``recall_70``, shares of the objects that some box overlaps with IoU of at least 0.5 or 0.7;
        ``mean_best_overlap``, the mean over objects of the highest IoU with a box (Uijlings et al., IJCV 2013).

    Raises:
        InputError: If the json is at fault, or no object of it lies in a photo of the store.
    """
    pairs, left_out = match(store, annotation_file)
    num_boxes = [len(boxes) for _, boxes, _ in pairs]
    best = np.concatenate([_best_overlaps(objects, boxes) for _, boxes, objects in pairs])
    return {
        'photos': len(num_boxes),
        'photos_left_out': left_out,
        'objects': len(best),
        'boxes_per_photo': float(np.mean(num_boxes)),
        'recall_50': float(np.mean(best >= 0.5)),
        'recall_70': float(np.mean(best >= 0.7)),
        'mean_best_overlap': float(np.mean(best)),
    }


def match(store, annotation_file):
    """The proposals and the true boxes of the photos that a store and a COCO json have in common, as :func:`evaluate`.

    Returns:
        tuple[list[tuple], int]: For each photo (height, width), (n, 4) proposals and (m, 4) true boxes, both xyxy in
        pixels; and how many photos of the json are left out.

    Raises:
        InputError: If the json is at fault, or no object of it lies in a photo of the store.
    """
    images, objects = read_objects(annotation_file)
    id_of = {store.file_name(image_id): image_id for image_id in store.image_ids.tolist()}
    pairs = []
    for image in images:
        image_id = id_of.get(image['file_name'])
        if image_id is not None and _same_size(store.size(image_id), image):
            true_boxes = objects.get(image['id'], np.empty((0, 4)))
            pairs.append((store.size(image_id), store.boxes(image_id), true_boxes))
    if not any(len(true_boxes) for *_, true_boxes in pairs):
        raise InputError(f'no object of {annotation_file} lies in a photo of the proposals: another set of photos?')
    return pairs, len(images) - len(pairs)


def read_objects(annotation_file):
    """Reads the photos and the true boxes of a COCO json.

    Args:
        annotation_file (str | Path): The json.

    Returns:
        tuple[list[dict], dict[int, np.ndarray]]: The ``images`` entries; image id -> (n, 4) float64 xyxy boxes.

    Raises:
        InputError: If the file is missing, or is no COCO json with boxes.
    """
    content = read_json(annotation_file)
    images = read_images(content, annotation_file)
    objects = {}
    try:
        for annotation in content['annotations']:
            x, y, width, height = map(float, annotation['bbox'])
            if width > 0 and height > 0 and not annotation.get('iscrowd'):
                objects.setdefault(annotation['image_id'], []).append((x, y, x + width, y + height))
    except (KeyError, TypeError, ValueError, AttributeError):
        needs = '"annotations", each with "image_id" and "bbox" (x, y, w, h)'
        raise InputError(f'{annotation_file} has no {needs}') from None
    return images, {image_id: np.array(boxes) for image_id, boxes in objects.items()}


def _same_size(size, image):
    height, width = size
    return image.get('height', height) == height and image.get('width', width) == width


def _best_overlaps(objects, boxes):
    """(n,) the highest IoU of each object (n, 4) with any box (m, 4); 0 without boxes."""
    if not len(objects) or not len(boxes):
        return np.zeros(len(objects))
    return pairwise_iou(torch.from_numpy(objects), torch.from_numpy(boxes).double()).amax(dim=1).numpy()
