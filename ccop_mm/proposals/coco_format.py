"""Conversion of proposals to and from COCO json, for pycocotools and other tools that read it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccop_mm.proposals.store import Entry, ProposalStore
from ccop_mm.utils.coco_json import BoxAnnotation, read_boxes, read_images, read_json
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: Key in "info" of an exported json that stores what COCO has no field for: metadata and skipped images.
KEY = 'ccop_mm_proposals'
CATEGORY = {'id': 1, 'name': 'object', 'supercategory': 'object'}

#: Largest finite float32.
LARGEST = float(np.finfo(np.float32).max)

#: Key in the metadata of a file, present if boxes were dropped: number of boxes that are not finite in float32.
DROPPED_KEY = 'dropped_non_finite'


def export_coco(store: ProposalStore, path: str | Path) -> int:
    """Writes a store as COCO json: one annotation per box, all of one category, in the order of the store.

    :func:`import_coco` restores the store from it, byte for byte. Boxes that are not finite, which earlier
    releases imported, are left out.

    Args:
        store (ProposalStore): Proposals.
        path (str | Path): Json to write.

    Returns:
        int: Number of boxes left out.
    """
    metadata = {key: value for key, value in store.metadata.items() if key not in ('format', 'format_version')}
    info = {'description': 'object proposals', KEY: {'metadata': metadata, 'skipped': store.skipped}}
    with atomic_write(path, 'w') as file:
        file.write(f'{{"info": {_json(info)},\n"licenses": [],\n"categories": [{_json(CATEGORY)}],\n"images": [')
        for index, (image_id, file_name, (height, width), _) in enumerate(store.entries()):
            image = {'id': image_id, 'file_name': file_name, 'height': height, 'width': width}
            digest = store.digest(image_id)
            file.write((',\n' if index else '\n') + _json({**image, 'digest': digest} if digest else image))
        file.write('],\n"annotations": [')
        annotation_id = num_dropped = 0
        for image_id, _, _, boxes in store.entries():
            finite = np.isfinite(boxes).all(axis=1)
            num_dropped += int((~finite).sum())
            for x1, y1, x2, y2 in boxes[finite].tolist():
                annotation_id += 1
                annotation = {
                    'id': annotation_id,
                    'image_id': image_id,
                    'category_id': 1,
                    'bbox': [_compact(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                    'area': _compact((x2 - x1) * (y2 - y1)),
                    'iscrowd': 0,
                }
                file.write((',\n' if annotation_id > 1 else '\n') + _json(annotation))
        file.write(']}\n')
    return num_dropped


def import_coco(path: str | Path, images_json: str | Path | None = None, proposals: bool = False) -> ProposalStore:
    """Creates a store from a COCO json.

    Args:
        path (str | Path): Result of :func:`export_coco`; or annotations of a data set; or detection results, a list of
            entries with ``image_id``, ``bbox`` (x, y, width, height) and optionally ``score``.
        images_json (str | Path | None): COCO json that lists the images of detection results.
        proposals (bool): Whether the annotations are proposals of another tool. Otherwise they are marked as ground
            truth in the metadata.

    Returns:
        ProposalStore: The boxes of an image are in the order of the file, or in descending order of score if all of
        them have one. Boxes that are not finite are dropped; their number is the metadata :data:`DROPPED_KEY`.

    Raises:
        InputError: If the file has none of these formats, or an image lacks its size.
    """
    results = _read_results(path)
    if results is None:
        images_json = path
    elif images_json is None:
        raise InputError(f'{path} is a list of results: pass the COCO json of its images (--images-json)')
    content = read_json(images_json)
    images = read_images(content, images_json)
    boxes, num_dropped = _boxes_by_image(content.get('annotations') if results is None else results, path)
    exported = _exported_info(content) if results is None else None
    if exported is not None:
        metadata, skipped = exported.get('metadata', {}), exported.get('skipped', {})
    else:
        method = 'imported' if proposals or results is not None else 'ground-truth'
        metadata, skipped = {'method': method, 'imported_from': Path(path).name}, {}
    if num_dropped:
        metadata = {**metadata, DROPPED_KEY: num_dropped}
    image_ids = {image['id'] for image in images}
    unknown = [image_id for image_id in boxes if image_id not in image_ids]
    if unknown:
        raise InputError(f'{path} contains a box of the image id {unknown[0]!r}, which its images do not include')
    entries = [_entry(image, boxes, path) for image in images]
    digests = {image['id']: image['digest'] for image in images if exported is not None and 'digest' in image}
    try:
        return ProposalStore(entries, skipped, metadata, digests)
    except ValueError as error:
        raise InputError(f'{path}: {error}') from None


def _read_results(path: str | Path) -> list[Any] | None:
    """Reads a list of results; returns None for any other content, which :func:`read_json` then checks."""
    try:
        with open(path, encoding='utf-8') as file:
            if file.read(64).lstrip()[:1] != '[':
                return None
            file.seek(0)
            return json.load(file)
    except (OSError, ValueError):
        return None


def _exported_info(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what :func:`export_coco` stored under :data:`KEY`, or None if the json is not an export."""
    info = content.get('info')
    found = info.get(KEY) if isinstance(info, dict) else None
    return found if isinstance(found, dict) else None


def _boxes_by_image(annotations: Any, path: str | Path) -> tuple[dict[Any, np.ndarray], int]:
    """Reads image id -> (n, 4) float64 xyxy, without crowd regions and boxes without area; counts non-finite boxes."""
    boxes, num_dropped = {}, 0
    for image_id, found in read_boxes(annotations, path).items():
        finite = [annotation for annotation in found if _is_finite(annotation)]
        num_dropped += len(found) - len(finite)
        kept = _sorted_by_score([annotation for annotation in finite if annotation.has_area])
        if kept:
            boxes[image_id] = np.array([annotation.xyxy for annotation in kept])
    return boxes, num_dropped


def _is_finite(annotation: BoxAnnotation) -> bool:
    """Returns whether the values of a box are finite in float32, in which they are stored."""
    return all(abs(value) <= LARGEST for value in (*annotation.bbox, *annotation.xyxy))


def _sorted_by_score(annotations: list[BoxAnnotation]) -> list[BoxAnnotation]:
    """Sorts boxes by descending score if all of them have one; the order of equal scores is kept."""
    scores = [annotation.entry.get('score') for annotation in annotations]
    if not all(isinstance(score, int | float) for score in scores):
        return annotations
    return sorted(annotations, key=lambda annotation: -annotation.entry['score'])


def _entry(image: Mapping[str, Any], boxes: Mapping[Any, np.ndarray], path: str | Path) -> Entry:
    """Returns the store's entry of an ``images`` entry."""
    height, width = image.get('height'), image.get('width')
    if type(height) is not int or type(width) is not int or height <= 0 or width <= 0:
        raise InputError(f'{path}: the image {image["file_name"]} needs "height" and "width", integers of at least 1')
    return image['id'], image['file_name'], (height, width), boxes.get(image['id'], np.empty((0, 4)))


def _compact(value: float) -> float:
    """Converts whole numbers to int, which JSON writes without a decimal point."""
    return int(value) if value == int(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, separators=(',', ':'))
