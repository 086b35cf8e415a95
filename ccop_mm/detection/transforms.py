"""Keypoints into the pipeline and out of it; between the two, mmdet's own transforms carry them."""

import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from ccop_mm.detection.keypoint_boxes import KeypointBoxes
from ccop_mm.errors import InputError


@TRANSFORMS.register_module()
class LoadKeypointAnnotations(LoadAnnotations):
    """mmdet's ``LoadAnnotations`` whose boxes carry their keypoints.

    Takes ``instances`` with ``keypoints`` (K, 3) and ``flip_indices``, as ``CocoKeypointDataset`` gives them, and sets
    ``gt_bboxes`` to :class:`KeypointBoxes`. Mmdet's transforms after it (Resize, RandomChoiceResize, RandomFlip,
    RandomCrop, RandomAffine, Mosaic, MixUp and others) then treat keypoints right; ``PackKeypointInputs`` takes them
    out.

    Args:
        **kwargs: Of mmdet's ``LoadAnnotations``, but ``box_type``.
    """

    def _load_bboxes(self, results: dict) -> None:
        super()._load_bboxes(results)
        instances = results.get('instances', [])
        flip_indices = results.get('flip_indices', [])
        if instances and ('keypoints' not in instances[0] or not flip_indices):
            raise InputError('LoadKeypointAnnotations: the data set gives no keypoints; use CocoKeypointDataset')
        keypoints = np.array([instance['keypoints'] for instance in instances], dtype=np.float32)
        keypoints = keypoints.reshape(len(instances), len(flip_indices), 3)
        results['gt_bboxes'] = KeypointBoxes(
            results['gt_bboxes'].tensor, keypoints[..., :2], keypoints[..., 2], flip_indices, clone=False
        )


@TRANSFORMS.register_module()
class PackKeypointInputs(PackDetInputs):
    """mmdet's ``PackDetInputs`` that packs keypoints, too.

    ``gt_instances`` and ``ignored_instances`` get ``keypoints`` (n, K, 2), x and y in pixels, and ``keypoints_visible``
    (n, K), 1 where labeled and else 0, both float32 (mmpose's names).

    Args:
        meta_keys (Sequence[str]): Of mmdet's ``PackDetInputs``.
    """

    mapping_table = dict(
        PackDetInputs.mapping_table, gt_keypoints='keypoints', gt_keypoints_visible='keypoints_visible'
    )

    def transform(self, results: dict) -> dict:
        boxes = results.get('gt_bboxes')
        if boxes is not None:
            if not isinstance(boxes, KeypointBoxes):
                raise InputError(
                    'PackKeypointInputs: the boxes came without keypoints; load them by LoadKeypointAnnotations, and '
                    'leave out transforms that replace the boxes, such as Albu'
                )
            results = dict(
                results,
                gt_bboxes=HorizontalBoxes(boxes.tensor, clone=False),
                gt_keypoints=boxes.keypoints,
                gt_keypoints_visible=(boxes.visible > 0).to(torch.float32),
            )
        return super().transform(results)
