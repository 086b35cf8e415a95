"""Box AP of detections by pycocotools, per class or with all classes as one."""

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ccop_mm.utils.errors import InputError

#: Metrics in the order of ``COCOeval.stats``.
METRICS = ('AP', 'AP50', 'AP75')


def box_ap(
    content: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    image_ids: Collection[int] | None = None,
    class_agnostic: bool = False,
) -> dict[str, float]:
    """Computes AP, AP50 and AP75 of boxes with pycocotools.

    Args:
        content (Mapping): COCO json with ``images`` and ``annotations``, such as the result of
            :func:`ccop_mm.utils.coco_json.read_json`. Detections of crowd regions do not count.
        detections (Sequence[Mapping]): Entries in COCO's format of results: ``image_id``, ``category_id``,
            ``bbox`` (x, y, width, height) and ``score``.
        image_ids (Collection[int], optional): Images to evaluate; by default all.
        class_agnostic (bool): Whether to ignore the classes of annotations and detections (``useCats=0``), instead of
            averaging over the classes that have annotations.

    Returns:
        dict[str, float]: AP (mean over the IoU thresholds 0.50, 0.55, ... 0.95), AP50 and AP75, each in [0, 1].

    Raises:
        InputError: No image to evaluate has a box, or a detection belongs to an image that ``content`` does not list.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    listed = {image['id'] for image in content['images']}
    chosen = listed if image_ids is None else listed.intersection(image_ids)
    unknown = [entry['image_id'] for entry in detections if entry['image_id'] not in listed]
    if unknown:
        raise InputError(f'a detection belongs to image id {unknown[0]!r}, which the annotation file does not list')
    annotations = [entry for entry in content['annotations'] if entry['image_id'] in chosen and 'bbox' in entry]
    if all(entry.get('iscrowd') for entry in annotations):
        raise InputError(f'none of the {len(chosen)} images to evaluate has a box')
    classes = sorted({entry['category_id'] for entry in annotations})
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        results = [entry for entry in detections if entry['image_id'] in chosen]
        for coco, entries in ((truth, annotations), (found, results)):
            coco.dataset = dict(
                images=[dict(id=image_id) for image_id in sorted(chosen)],
                categories=[dict(id=category_id) for category_id in classes],
                annotations=[_complete(entry, number) for number, entry in enumerate(entries, 1)],
            )
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.params.useCats = int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats[: len(METRICS)], strict=True)}


def _complete(entry: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Copies an annotation or detection with an id of its own and the fields that pycocotools requires."""
    box = [float(value) for value in entry['bbox']]
    defaults = dict(area=box[2] * box[3], iscrowd=0)  # both may be missing in a json, and are in results
    return {**defaults, **entry, 'id': number, 'bbox': box}
