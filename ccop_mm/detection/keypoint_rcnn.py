"""Keypoint R-CNN detector."""

from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class KeypointRCNN(TwoStageDetector):
    """Keypoint R-CNN (`Mask R-CNN <https://arxiv.org/abs/1703.06870>`_, Sec. 5).

    The ``roi_head`` must be a :class:`ccop_mm.detection.KeypointRoIHead`. Predictions contain ``keypoints`` (n, K, 2)
    and ``keypoint_scores`` (n, K) in addition to boxes, scores and labels.

    Args:
        **kwargs: Arguments of mmdet's ``TwoStageDetector``.
    """
