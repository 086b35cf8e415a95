"""Proposals to and from COCO json, for pycocotools and every tool that reads it."""

import json
from pathlib import Path

import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write
from ccop_mm.proposals.sources import read_images, read_json
from ccop_mm.proposals.store import ProposalStore

#: Where an exported json keeps what COCO has no place for: metadata, and what was skipped and why.
KEY = 'ccop_mm_proposals'
CATEGORY = {'id': 1, 'name': 'object', 'supercategory': 'object'}


def export_coco(store, path):
    """Writes a store as COCO json: a box an annotation, all of one category, in the store's order.

    :func:`import_coco` makes the same store of it, byte for byte.

    Args:
        store (ProposalStore): The store.
        path (str | Path): The json to write.
    """
    metadata = {key: value for key, value in store.metadata.items() if key not in ('format', 'format_version')}
    info = {'description': 'object proposals', KEY: {'metadata': metadata, 'skipped': store.skipped}}
    with atomic_write(path, 'w') as file:
        file.write(f'{{"info": {_json(info)},\n"licenses": [],\n"categories": [{_json(CATEGORY)}],\n"images": [')
        for number, (image_id, file_name, (height, width), _) in enumerate(store.entries()):
            image = {'id': image_id, 'file_name': file_name, 'height': height, 'width': width}
            digest = store.digest(image_id)
            file.write((',\n' if number else '\n') + _json({**image, 'digest': digest} if digest else image))
        file.write('],\n"annotations": [')
        number = 0
        for image_id, _, _, boxes in store.entries():
            for x1, y1, x2, y2 in boxes.tolist():
                number += 1
                box = [_short(value) for value in (x1, y1, x2 - x1, y2 - y1)]
                annotation = {'id': number, 'image_id': image_id, 'category_id': 1, 'bbox': box}
                annotation.update(area=_short((x2 - x1) * (y2 - y1)), iscrowd=0)
                file.write((',\n' if number > 1 else '\n') + _json(annotation))
        file.write(']}\n')


def import_coco(path, photos_json=None, proposals=False):
    """Makes a store of a COCO json.

    Args:
        path (str | Path): What :func:`export_coco` wrote; or the annotations of a data set; or a detector's results, a
            list of ``image_id`` and ``bbox`` (x, y, w, h), with or without ``score``.
        photos_json (str | Path | None): For results: the COCO json of their photos.
        proposals (bool): The annotations are another tool's proposals. Otherwise they are taken for ground truth, and
            the store says so.

    Returns:
        ProposalStore: A photo's boxes are in the order of the file, or of descending score if all have one.

    Raises:
        InputError: If the file is not one of these, or a photo lacks its size.
    """
    results = _read_results(path)
    if results is None:
        content = read_json(path)
        annotations = content.get('annotations')
    elif photos_json is None:
        raise InputError(f'{path} is a list of results: name the COCO json of its photos (--photos)')
    else:
        content, annotations = read_json(photos_json), results
    images = read_images(content, path if results is None else photos_json)
    exported = _exported(content) if results is None else None
    if exported is not None:
        metadata, skipped = exported.get('metadata', {}), exported.get('skipped', {})
    else:
        known = proposals or results is not None
        metadata, skipped = {'method': 'imported' if known else 'ground-truth', 'imported_from': Path(path).name}, {}
    boxes = _boxes_by_image(annotations, path)
    ids = {image['id'] for image in images}
    strange = next((image_id for image_id in boxes if image_id not in ids), None)
    if strange is not None:
        raise InputError(f'{path} has a box of the image id {strange!r}, which is not among its photos')
    entries = [_entry(image, boxes, path) for image in images]
    digests = {image['id']: image['digest'] for image in images if exported is not None and 'digest' in image}
    try:
        return ProposalStore(entries, skipped, metadata, digests)
    except ValueError as error:
        raise InputError(f'{path}: {error}') from None


def load_proposals(path, allow_ground_truth=False):
    """Reads proposals for training: a proposals file, or a COCO json.

    Args:
        path (str | Path): The file.
        allow_ground_truth (bool): Take true boxes for proposals, as an upper bound (the paper's Table 5).

    Returns:
        ProposalStore: The proposals.

    Raises:
        InputError: If the file is at fault, or holds true boxes without leave.
    """
    store = import_coco(path) if str(path).endswith('.json') else ProposalStore.load(path)
    if store.metadata.get('method') == 'ground-truth' and not allow_ground_truth:
        raise InputError(
            f'{path} holds ground truth, which is no self-supervision: make proposals with tools/propose.py, or set '
            "allow_ground_truth=True for an upper bound; if it is a json of another tool's proposals: "
            'tools/propose.py import --proposals'
        )
    return store


def _read_results(path):
    """The list of a results file, None if the file holds anything else; that is for :func:`read_json` to judge."""
    try:
        with open(path, encoding='utf-8') as file:
            if file.read(64).lstrip()[:1] != '[':
                return None
            file.seek(0)
            return json.load(file)
    except (OSError, ValueError):
        return None


def _exported(content):
    info = content.get('info')
    found = info.get(KEY) if isinstance(info, dict) else None
    return found if isinstance(found, dict) else None


def _boxes_by_image(annotations, path):
    """image id -> (n, 4) float64 xyxy, without crowd regions and boxes without area."""
    found = {}
    try:
        for annotation in annotations:
            x, y, width, height = map(float, annotation['bbox'])
            if width > 0 and height > 0 and not annotation.get('iscrowd'):
                score = annotation.get('score')
                found.setdefault(annotation['image_id'], []).append((x, y, x + width, y + height, score))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f'{path} has no boxes, each with "image_id" and "bbox" (x, y, w, h)') from None
    return {image_id: _by_score(rows) for image_id, rows in found.items()}


def _by_score(rows):
    if all(isinstance(row[4], int | float) for row in rows):
        rows = sorted(rows, key=lambda row: -row[4])  # keeps the order of equals
    return np.array([row[:4] for row in rows])


def _entry(image, boxes, path):
    size = (image.get('height'), image.get('width'))
    if not all(type(side) is int and side > 0 for side in size):
        raise InputError(f'{path}: the photo {image["file_name"]} lacks "height" and "width", whole numbers from 1 up')
    return image['id'], image['file_name'], size, boxes.get(image['id'], np.empty((0, 4)))


def _short(value):
    """Whole numbers without the point: a fifth less to write."""
    return int(value) if value == int(value) else value


def _json(value):
    return json.dumps(value, separators=(',', ':'))
