"""The detector."""

from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class KeypointRCNN(TwoStageDetector):
    """Keypoint R-CNN (`Mask R-CNN <https://arxiv.org/abs/1703.06870>`_, Sec. 5).

    A two-stage detector whose ``roi_head`` is a :class:`ccop_mm.detection.KeypointRoIHead`.

    Predictions carry ``keypoints`` (n, K, 2) and ``keypoint_scores`` (n, K) beside boxes, scores and labels.

    Args:
        **kwargs: Of mmdet's ``TwoStageDetector``.
    """
