"""Boxes, keypoints and, if wanted, masks of each RoI."""

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmdet.utils import ConfigType, InstanceList
from torch import Tensor

from ccop_mm.errors import InputError


@MODELS.register_module()
class KeypointRoIHead(StandardRoIHead):
    """mmdet's standard RoI head with a keypoint branch beside the box branch.

    The keypoint branch trains on the positive RoIs that hold a labeled keypoint; others would add nothing to its loss.
    Features are taken as float32, also under autocast: mmdet's RoI extractor rounds the RoIs to the features' type, and
    half precision has steps of a pixel and more above 1,024 (bfloat16 above 128).

    Args:
        keypoint_roi_extractor (dict): Config of the RoI extractor.
        keypoint_head (dict): Config of a :class:`KeypointHead`.
        **kwargs: Of mmdet's ``StandardRoIHead``.
    """

    def __init__(self, keypoint_roi_extractor: ConfigType, keypoint_head: ConfigType, **kwargs) -> None:
        super().__init__(**kwargs)
        self.keypoint_roi_extractor = MODELS.build(keypoint_roi_extractor)
        self.keypoint_head = MODELS.build(keypoint_head)

    def forward(
        self, x: tuple[Tensor], rpn_results_list: InstanceList, batch_data_samples: SampleList | None = None
    ) -> tuple:
        """Raw outputs of all branches; the keypoint branch takes the first 100 RoIs, as mmdet's mask branch does."""
        x = _as_float(x)
        rois = bbox2roi([results.bboxes for results in rpn_results_list])
        return (
            *super().forward(x, rpn_results_list, batch_data_samples),
            self._keypoint_forward(x, rois[:100]),
        )

    def loss(self, x: tuple[Tensor], rpn_results_list: InstanceList, batch_data_samples: SampleList) -> dict:
        """Losses of all branches.

        Args:
            x (tuple[Tensor]): Feature maps, finest first.
            rpn_results_list (list[InstanceData]): Proposals; their ``bboxes`` become ``priors``, as in mmdet.
            batch_data_samples (list[DetDataSample]): ``gt_instances`` with ``keypoints`` (n, K, 2) in pixels and
                ``keypoints_visible`` (n, K); n may be 0.

        Returns:
            dict[str, Tensor]: Those of ``StandardRoIHead``, and ``loss_keypoint``.

        Raises:
            InputError: If a data sample has no keypoints, or not as many as the head.
        """
        x = _as_float(x)
        batch_gt, batch_gt_ignore, _ = unpack_gt_instances(batch_data_samples)
        for gt in batch_gt:
            self._check(gt)
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
        """The keypoint branch's loss on the positive RoIs; see :meth:`KeypointHead.loss`."""
        rois = bbox2roi([sampled.pos_priors for sampled in sampling_results])
        keypoints, visible = [], []
        for gt, sampled in zip(batch_gt_instances, sampling_results, strict=True):
            owners = sampled.pos_assigned_gt_inds
            # Reshaped: a photo without objects may come without a number of keypoints.
            keypoints.append(gt.keypoints[owners].reshape(-1, self.keypoint_head.num_keypoints, 2))
            visible.append(gt.keypoints_visible[owners].reshape(-1, self.keypoint_head.num_keypoints))
        side = self.keypoint_roi_extractor.roi_layers[0].output_size[0]
        cells, valid = self.keypoint_head.get_targets(torch.cat(keypoints), torch.cat(visible), rois[:, 1:], side)
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
        """Detections with keypoints.

        Args:
            x (tuple[Tensor]): Feature maps, finest first.
            rpn_results_list (list[InstanceData]): Proposals.
            batch_data_samples (list[DetDataSample]): Metainfo.
            rescale (bool): Whether boxes, masks and keypoints are in the coordinates of the original photo.

        Returns:
            list[InstanceData]: ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,), ``keypoints`` (n, K, 2),
            ``keypoint_scores`` (n, K) in (0, 1], and ``masks`` if there is a mask head.
        """
        x = _as_float(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        results_list = self.predict_bbox(x, metas, rpn_results_list, rcnn_test_cfg=self.test_cfg, rescale=False)
        rois = bbox2roi([results.bboxes for results in results_list])
        self.keypoint_head.predict_by_feat(self._keypoint_forward(x, rois), results_list)
        if self.with_mask:
            results_list = self.predict_mask(x, metas, results_list, rescale=rescale)  # rescales the boxes, too
        if rescale:
            for results, meta in zip(results_list, metas, strict=True):
                factors = [1 / factor for factor in meta['scale_factor']]
                if not self.with_mask:
                    results.bboxes = scale_boxes(results.bboxes, factors)
                results.keypoints = results.keypoints * results.keypoints.new_tensor(factors)
        return results_list

    def _keypoint_forward(self, x: tuple[Tensor], rois: Tensor) -> Tensor:
        """Logits (R, K, m, m) of the RoIs (R, 5)."""
        features = self.keypoint_roi_extractor(x[: self.keypoint_roi_extractor.num_inputs], rois)
        if self.with_shared_head:
            features = self.shared_head(features)
        return self.keypoint_head(features)

    def _check(self, gt) -> None:
        expected = self.keypoint_head.num_keypoints
        if 'keypoints' not in gt or 'keypoints_visible' not in gt:
            raise InputError(
                'the ground truth has no keypoints: use CocoKeypointDataset with LoadKeypointAnnotations and '
                'PackKeypointInputs in its pipeline'
            )
        if len(gt) and gt.keypoints.shape[1] != expected:
            raise InputError(
                f'the data have {gt.keypoints.shape[1]} keypoints and the head {expected}: '
                'set model.roi_head.keypoint_head.num_keypoints'
            )


def _as_float(x: tuple[Tensor]) -> tuple[Tensor]:
    return tuple(level.float() for level in x)
