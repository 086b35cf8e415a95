"""Converts the weights of torchvision's Keypoint R-CNN to mmdet and reproduces its anchors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import TASK_UTILS
from torch import Tensor

from ccop_mm.utils.errors import InputError

#: Pairs of torchvision's parameter name (a regular expression) and mmdet's. The convolutions of the keypoint head are
#: handled by ``KEYPOINT_CONV_PATTERN``: torchvision counts the ReLUs between them as well.
RENAMED_PARAMETERS = (
    (r'backbone\.body\.(.+)', r'backbone.\1'),
    (r'backbone\.fpn\.inner_blocks\.(\d)\.0\.(\w+)', r'neck.lateral_convs.\1.conv.\2'),
    (r'backbone\.fpn\.layer_blocks\.(\d)\.0\.(\w+)', r'neck.fpn_convs.\1.conv.\2'),
    (r'rpn\.head\.conv\.0\.0\.(\w+)', r'rpn_head.rpn_conv.\1'),
    (r'rpn\.head\.cls_logits\.(\w+)', r'rpn_head.rpn_cls.\1'),
    (r'rpn\.head\.bbox_pred\.(\w+)', r'rpn_head.rpn_reg.\1'),
    (r'roi_heads\.box_head\.fc6\.(\w+)', r'roi_head.bbox_head.shared_fcs.0.\1'),
    (r'roi_heads\.box_head\.fc7\.(\w+)', r'roi_head.bbox_head.shared_fcs.1.\1'),
    (r'roi_heads\.box_predictor\.cls_score\.(\w+)', r'roi_head.bbox_head.fc_cls.\1'),
    (r'roi_heads\.box_predictor\.bbox_pred\.(\w+)', r'roi_head.bbox_head.fc_reg.\1'),
    (r'roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)', r'roi_head.keypoint_head.deconv.\1'),
)
KEYPOINT_CONV_PATTERN = re.compile(r'roi_heads\.keypoint_head\.(\d+)\.(\w+)')


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the weights of torchvision's ``keypointrcnn_resnet50_fpn`` to those of a :class:`KeypointRCNN`.

    The converted weights fit the config ``keypoint-rcnn_r50-fpn_torchvision.py``.

    Args:
        state (Mapping[str, Tensor]): State dict of the model, from torchvision 0.14 or later.

    Returns:
        dict[str, Tensor]: State dict of the detector. The background is the first class in torchvision and the last in
        mmdet.

    Raises:
        InputError: If a key is not a parameter of this model.
    """
    converted = {}
    for name, tensor in state.items():
        target = _rename(name)
        if 'bbox_head.fc_cls' in target:
            tensor = torch.cat((tensor[1:], tensor[:1]))
        elif 'bbox_head.fc_reg' in target:
            tensor = tensor[4:]  # mmdet has no box regression for the background
        converted[target] = tensor
    return converted


def _rename(name: str) -> str:
    """Returns mmdet's name of a parameter of torchvision's model."""
    match = KEYPOINT_CONV_PATTERN.fullmatch(name)
    if match:
        return f'roi_head.keypoint_head.convs.{int(match[1]) // 2}.conv.{match[2]}'
    for pattern, target in RENAMED_PARAMETERS:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    raise InputError(f"{name!r} is not a parameter of torchvision's keypointrcnn_resnet50_fpn")


@TASK_UTILS.register_module()
class RoundedAnchorGenerator(AnchorGenerator):
    """Rounds the corners of mmdet's anchors to whole pixels, as torchvision does.

    Args:
        **kwargs: Arguments of mmdet's ``AnchorGenerator``.
    """

    def gen_single_level_base_anchors(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the base anchors (A, 4) of one level, xyxy relative to the anchor center."""
        return super().gen_single_level_base_anchors(*args, **kwargs).round()
