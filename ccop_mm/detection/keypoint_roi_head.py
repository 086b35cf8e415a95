"""RoI head that predicts boxes, keypoints and optionally masks."""

from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmdet.utils import ConfigType, InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from ccop_mm.utils.errors import InputError


@MODELS.register_module()
class KeypointRoIHead(StandardRoIHead):
    """Extends mmdet's ``StandardRoIHead`` with a keypoint branch.

    The keypoint branch trains on positive RoIs that contain a labeled keypoint. Features are converted to float32, also
    under autocast: mmdet's RoI extractor casts the RoIs to the dtype of the features, which rounds coordinates to whole
    pixels or more above 1,024 in float16 and above 128 in bfloat16.

    Args:
        keypoint_roi_extractor (dict): Config of the RoI extractor of the keypoint branch.
        keypoint_head (dict): Config of a :class:`KeypointHead`.
        **kwargs: Arguments of mmdet's ``StandardRoIHead``.
    """

    def __init__(self, keypoint_roi_extractor: ConfigType, keypoint_head: ConfigType, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keypoint_roi_extractor = MODELS.build(keypoint_roi_extractor)
        self.keypoint_head = MODELS.build(keypoint_head)

    def forward(
        self, x: tuple[Tensor], rpn_results_list: InstanceList, batch_data_samples: SampleList | None = None
    ) -> tuple:
        """Returns the raw outputs of all branches.

        The keypoint branch uses only the first 100 RoIs, as mmdet's mask branch does.
        """
        x = _as_float(x)
        rois = bbox2roi([results.bboxes for results in rpn_results_list])
        return (
            *super().forward(x, rpn_results_list, batch_data_samples),
            self._keypoint_forward(x, rois[:100]),
        )

    def loss(self, x: tuple[Tensor], rpn_results_list: InstanceList, batch_data_samples: SampleList) -> dict:
        """Computes the losses of all branches.

        Args:
            x (tuple[Tensor]): Feature maps, finest level first.
            rpn_results_list (list[InstanceData]): Proposals of each image. As in mmdet, ``bboxes`` is renamed to
                ``priors`` in place.
            batch_data_samples (list[DetDataSample]): Samples whose ``gt_instances`` have ``keypoints`` (n, K, 2) in
                pixels and ``keypoints_visible`` (n, K); n may be 0.

        Returns:
            dict[str, Tensor]: Losses of ``StandardRoIHead`` and ``loss_keypoint``.

        Raises:
            InputError: If a sample has no keypoints, or their number differs from that of the head.
        """
        x = _as_float(x)
        batch_gt, batch_gt_ignore, _ = unpack_gt_instances(batch_data_samples)
        for gt in batch_gt:
            self._check_keypoints(gt)
        sampling_results = []
        for index, proposals in enumerate(rpn_results_list):
            proposals.priors = proposals.pop('bboxes')
            assigned = self.bbox_assigner.assign(proposals, batch_gt[index], batch_gt_ignore[index])
            features = [level[index][None] for level in x]
            sampling_results.append(self.bbox_sampler.sample(assigned, proposals, batch_gt[index], feats=features))
        box_results = self.bbox_loss(x, sampling_results)
        losses = dict(box_results['loss_bbox'])
        if self.with_mask:
            mask_results = self.mask_loss(x, sampling_results, box_results['bbox_feats'], batch_gt)
            losses.update(mask_results['loss_mask'])
        losses.update(self.keypoint_loss(x, sampling_results, batch_gt))
        return losses

    def keypoint_loss(
        self, x: tuple[Tensor], sampling_results: list[SamplingResult], batch_gt_instances: InstanceList
    ) -> dict:
        """Computes the loss of the keypoint branch on the positive RoIs; see :meth:`KeypointHead.loss`.

        Args:
            x (tuple[Tensor]): Feature maps, finest level first.
            sampling_results (list[SamplingResult]): Sampled RoIs of each image.
            batch_gt_instances (list[InstanceData]): Ground truth of each image.

        Returns:
            dict: The scalar ``loss_keypoint``.
        """
        rois = bbox2roi([sampled.pos_priors for sampled in sampling_results])
        keypoints, visible = [], []
        for gt, sampled in zip(batch_gt_instances, sampling_results, strict=True):
            gt_inds = sampled.pos_assigned_gt_inds
            # An image without objects may have keypoints of shape (0, 0, 2).
            keypoints.append(gt.keypoints[gt_inds].reshape(-1, self.keypoint_head.num_keypoints, 2))
            visible.append(gt.keypoints_visible[gt_inds].reshape(-1, self.keypoint_head.num_keypoints))
        roi_size = self.keypoint_roi_extractor.roi_layers[0].output_size[0]
        cells, valid = self.keypoint_head.get_targets(torch.cat(keypoints), torch.cat(visible), rois[:, 1:], roi_size)
        used = valid.any(dim=1)
        logits = self._keypoint_forward(x, rois[used])
        return self.keypoint_head.loss(logits, cells[used], valid[used], len(batch_gt_instances))

    def predict(
        self,
        x: tuple[Tensor],
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> InstanceList:
        """Predicts boxes, keypoints and, with a mask head, masks.

        Args:
            x (tuple[Tensor]): Feature maps, finest level first.
            rpn_results_list (list[InstanceData]): Proposals of each image.
            batch_data_samples (list[DetDataSample]): Samples with the metainfo of each image.
            rescale (bool): Whether to return boxes, masks and keypoints in the coordinates of the original image
                instead of the network input.

        Returns:
            list[InstanceData]: Detections of each image: ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,),
            ``keypoints`` (n, K, 2), ``keypoint_scores`` (n, K) in (0, 1], and ``masks`` if there is a mask head.
        """
        x = _as_float(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        results_list = self.predict_bbox(x, metas, rpn_results_list, rcnn_test_cfg=self.test_cfg, rescale=False)
        rois = bbox2roi([results.bboxes for results in results_list])
        self.keypoint_head.predict_by_feat(self._keypoint_forward(x, rois), results_list)
        if self.with_mask:
            results_list = self.predict_mask(x, metas, results_list, rescale=rescale)  # also rescales the boxes
        if rescale:
            for results, meta in zip(results_list, metas, strict=True):
                factors = [1 / factor for factor in meta['scale_factor']]
                if not self.with_mask:
                    results.bboxes = scale_boxes(results.bboxes, factors)
                results.keypoints = results.keypoints * results.keypoints.new_tensor(factors)
        return results_list

    def _keypoint_forward(self, x: tuple[Tensor], rois: Tensor) -> Tensor:
        """Returns the logits (R, K, m, m) of the RoIs (R, 5)."""
        features = self.keypoint_roi_extractor(x[: self.keypoint_roi_extractor.num_inputs], rois)
        if self.with_shared_head:
            features = self.shared_head(features)
        return self.keypoint_head(features)

    def _check_keypoints(self, gt: InstanceData) -> None:
        """Raises ``InputError`` if the ground truth of an image does not match the head."""
        expected = self.keypoint_head.num_keypoints
        if 'keypoints' not in gt or 'keypoints_visible' not in gt:
            raise InputError(
                'the ground truth has no keypoints: use CocoKeypointDataset with LoadKeypointAnnotations and '
                'PackKeypointInputs in its pipeline'
            )
        if len(gt) and gt.keypoints.shape[1] != expected:
            raise InputError(
                f'the ground truth has {gt.keypoints.shape[1]} keypoints per object, but '
                f'model.roi_head.keypoint_head.num_keypoints is {expected}: set it to the number of keypoints of the '
                'dataset'
            )


def _as_float(x: tuple[Tensor]) -> tuple[Tensor]:
    return tuple(level.float() for level in x)
