"""First and last transform of a keypoint pipeline. The transforms between them are mmdet's own."""

import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from ccop_mm.detection.keypoint_boxes import KeypointBoxes
from ccop_mm.utils.errors import InputError


@TRANSFORMS.register_module()
class LoadKeypointAnnotations(LoadAnnotations):
    """Extends mmdet's ``LoadAnnotations`` with keypoints.

    Reads ``instances`` with ``keypoints`` (K, 3), and ``flip_indices``, both provided by ``CocoKeypointDataset``, and
    stores boxes and keypoints together in ``gt_bboxes`` as :class:`KeypointBoxes`. The following transforms of mmdet
    (Resize, RandomChoiceResize, RandomFlip, RandomCrop, RandomAffine, Mosaic, MixUp and others) then also transform the
    keypoints. ``PackKeypointInputs`` separates them again.

    Args:
        **kwargs: Arguments of mmdet's ``LoadAnnotations``, except ``box_type``.
    """

    def _load_bboxes(self, results: dict) -> None:
        super()._load_bboxes(results)
        instances = results.get('instances', [])
        flip_indices = results.get('flip_indices', [])
        if instances and ('keypoints' not in instances[0] or not flip_indices):
            raise InputError(
                "LoadKeypointAnnotations: the dataset provides no 'keypoints' or no 'flip_indices': use "
                'CocoKeypointDataset'
            )
        keypoints = np.array([instance['keypoints'] for instance in instances], dtype=np.float32)
        keypoints = keypoints.reshape(len(instances), len(flip_indices), 3)
        results['gt_bboxes'] = KeypointBoxes(
            results['gt_bboxes'].tensor, keypoints[..., :2], keypoints[..., 2], flip_indices, clone=False
        )


@TRANSFORMS.register_module()
class PackKeypointInputs(PackDetInputs):
    """Extends mmdet's ``PackDetInputs`` with keypoints.

    Adds to ``gt_instances`` and ``ignored_instances`` the fields ``keypoints`` (n, K, 2), x and y in pixels, and
    ``keypoints_visible`` (n, K), 1 where labeled and 0 elsewhere. Both are float32 and named as in mmpose.

    Args:
        meta_keys (Sequence[str]): Metainfo keys to pack, as in mmdet's ``PackDetInputs``.
    """

    mapping_table = dict(
        PackDetInputs.mapping_table, gt_keypoints='keypoints', gt_keypoints_visible='keypoints_visible'
    )

    def transform(self, results: dict) -> dict:
        """Packs image, annotations and metainfo; works without annotations, too.

        Raises:
            InputError: If the boxes have lost their keypoints.
        """
        boxes = results.get('gt_bboxes')
        if boxes is not None:
            if not isinstance(boxes, KeypointBoxes):
                raise InputError(
                    f'PackKeypointInputs: gt_bboxes is a {type(boxes).__name__} without keypoints: load annotations '
                    'with LoadKeypointAnnotations and remove transforms that create new boxes, such as Albu'
                )
            results = dict(
                results,
                gt_bboxes=HorizontalBoxes(boxes.tensor, clone=False),
                gt_keypoints=boxes.keypoints,
                gt_keypoints_visible=(boxes.visible > 0).to(torch.float32),
            )
        return super().transform(results)
