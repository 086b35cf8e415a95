"""pycocotools: order of categories, annotation id 0, and annotations without ``area`` or ``iscrowd``."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any


def number_classes_by_name() -> None:
    """Makes mmdet's datasets and metrics number classes in the order of ``metainfo.classes``.

    Problem (pycocotools 2.0.11; mmdet 3.3.0, onedl-mmdetection 3.5.1):
        ``COCO.getCatIds(catNms=...)`` returns ids in the order of the json, and mmdet uses their positions as labels.
        Label i is therefore not ``classes[i]`` if the json lists its categories in another order, and a validation json
        in another order than the training json gives a wrong AP without an error. ``COCOeval.evaluate`` sorts
        ``params.catIds``, although mmdet looks up the AP of each class by its position in the list that it passed.

    Fix:
        Sort the ids by the position of their names in ``catNms``, and return results in the given order of ``catIds``.

    Remove when:
        mmdet derives labels from names and looks up the AP of a class by its id.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if hasattr(COCO.getCatIds, '__wrapped__'):
        return
    get_category_ids, evaluate = COCO.getCatIds, COCOeval.evaluate

    @functools.wraps(get_category_ids)
    def ids_in_order_of_names(
        self: Any, catNms: Sequence[str] = (), supNms: Sequence[str] = (), catIds: Sequence[int] = ()
    ) -> list[int]:
        ids = get_category_ids(self, catNms, supNms, catIds)
        if isinstance(catNms, str) or len(catNms) < 2:
            return ids
        position = {name: index for index, name in enumerate(catNms)}
        return sorted(ids, key=lambda category_id: position[self.cats[category_id]['name']])

    @functools.wraps(evaluate)
    def evaluate_in_given_order(self: Any) -> None:
        given = list(dict.fromkeys(self.params.catIds))
        evaluate(self)
        params = self.params
        if not params.useCats or given == list(params.catIds):
            return
        # evalImgs lists all categories in turn, each with all area ranges and images.
        size = len(params.areaRng) * len(params.imgIds)
        results = {
            category_id: self.evalImgs[index * size : (index + 1) * size]
            for index, category_id in enumerate(params.catIds)
        }
        self.evalImgs = [result for category_id in given for result in results[category_id]]
        params.catIds = given
        self._paramsEval = copy.deepcopy(params)

    COCO.getCatIds, COCOeval.evaluate = ids_in_order_of_names, evaluate_in_given_order


def match_annotation_zero() -> None:
    """Makes ``COCOeval`` count a detection of the annotation with id 0 as a match.

    Problem (pycocotools 2.0.11):
        ``evaluateImg`` stores the id of the matched annotation of each detection, and 0 if there is none. A detection
        of annotation 0 is therefore a false positive, and a detection with id 0 is matched several times.

    Fix:
        Replace each id 0 by an unused id in the copies that are evaluated.

    Remove when:
        pycocotools marks unmatched detections by another value.
    """
    from pycocotools.cocoeval import COCOeval

    if hasattr(COCOeval._prepare, '__wrapped__'):
        return
    prepare = COCOeval._prepare

    @functools.wraps(prepare)
    def prepare_with_positive_ids(self: Any) -> None:
        prepare(self)
        for groups in (self._gts, self._dts):
            zeros = [
                (group, index)
                for group in groups.values()
                for index, annotation in enumerate(group)
                if annotation['id'] == 0
            ]
            if zeros:
                unused = 1 + max(annotation['id'] for group in groups.values() for annotation in group)
                for new_id, (group, index) in enumerate(zeros, start=unused):
                    group[index] = dict(group[index], id=new_id)

    COCOeval._prepare = prepare_with_positive_ids


def complete_annotations() -> None:
    """Makes ``COCO`` supply ``area`` and ``iscrowd`` where a json does not have them.

    Problem (pycocotools 2.0.11; mmdet 3.3.0, onedl-mmdetection 3.5.1):
        ``COCOeval`` and mmdet's ``CocoDataset`` raise ``KeyError`` for an annotation without ``area``, ``COCOeval``
        also for one without ``iscrowd``. Both are optional in many annotation tools.

    Fix:
        Set ``area`` to that of the polygons, of the mask or of the box, see :func:`object_area`, and ``iscrowd`` to 0
        when a json is indexed. Existing values are kept.

    Remove when:
        Both libraries accept such annotations.
    """
    from pycocotools.coco import COCO

    if hasattr(COCO.createIndex, '__wrapped__'):
        return
    create_index = COCO.createIndex

    @functools.wraps(create_index)
    def create_index_of_complete_annotations(self: Any) -> None:
        for annotation in self.dataset.get('annotations') or []:
            if 'bbox' in annotation or 'segmentation' in annotation:
                if annotation.get('area') is None:
                    annotation['area'] = object_area(annotation)
                if annotation.get('iscrowd') is None:
                    annotation['iscrowd'] = 0
        create_index(self)

    COCO.createIndex = create_index_of_complete_annotations


def object_area(annotation: Mapping[str, Any]) -> float:
    """Computes the area of an annotated object in pixels.

    Args:
        annotation (Mapping): COCO annotation.

    Returns:
        float: Sum of the areas of its polygons, or the number of pixels of its mask. Without either, the area of its
        box.
    """
    segmentation = annotation.get('segmentation')
    if isinstance(segmentation, Mapping) and segmentation.get('counts'):
        return _mask_area(segmentation)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        area = sum(_polygon_area(polygon) for polygon in segmentation if isinstance(polygon, Sequence))
        if area > 0:
            return area
    box = annotation.get('bbox') or (0, 0, 0, 0)
    return float(box[2] * box[3])


def _mask_area(segmentation: Mapping[str, Any]) -> float:
    from pycocotools import mask

    if isinstance(segmentation['counts'], (list, tuple)):  # uncompressed: background and object pixels in turn
        return float(sum(segmentation['counts'][1::2]))
    return float(mask.area(segmentation))


def _polygon_area(polygon: Sequence[float]) -> float:
    """Computes the area of a polygon (x1, y1, x2, y2, ...) by the shoelace formula."""
    length = len(polygon) // 2
    xs, ys = polygon[0 : 2 * length : 2], polygon[1 : 2 * length : 2]
    following = zip([*xs[1:], *xs[:1]], [*ys[1:], *ys[:1]], strict=True)
    return abs(sum(x * v - u * y for x, y, (u, v) in zip(xs, ys, following, strict=True))) / 2
