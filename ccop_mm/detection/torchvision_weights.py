"""torchvision's Keypoint R-CNN in mmdet: its weights under mmdet's names, and the anchors that they learned with."""

import re
from collections.abc import Mapping

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import TASK_UTILS
from torch import Tensor

from ccop_mm.errors import InputError

#: torchvision's name, as a pattern, and mmdet's. Convolutions of the keypoint head alternate with ReLUs: see below.
RENAMED = (
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
KEYPOINT_CONVOLUTION = re.compile(r'roi_heads\.keypoint_head\.(\d+)\.(\w+)')


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a torchvision ``keypointrcnn_resnet50_fpn`` for a :class:`KeypointRCNN` with ResNet and FPN.

    The config that goes with them is ``keypoint-rcnn_r50-fpn_torchvision.py``.

    Args:
        state (Mapping[str, Tensor]): ``model.state_dict()`` of torchvision >= 0.14, whose names of layers these are.

    Returns:
        dict[str, Tensor]: A state dict for the detector. Background, torchvision's class 0, is mmdet's last.

    Raises:
        InputError: If a key is unknown.
    """
    converted = {}
    for name, tensor in state.items():
        target = _rename(name)
        if 'bbox_head.fc_cls' in target:
            tensor = torch.cat((tensor[1:], tensor[:1]))
        elif 'bbox_head.fc_reg' in target:
            tensor = tensor[4:]  # mmdet regresses no box for the background
        converted[target] = tensor
    return converted


def _rename(name: str) -> str:
    match = KEYPOINT_CONVOLUTION.fullmatch(name)
    if match:
        return f'roi_head.keypoint_head.convs.{int(match[1]) // 2}.conv.{match[2]}'
    for pattern, target in RENAMED:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    raise InputError(f'{name} is no weight of a torchvision keypointrcnn_resnet50_fpn')


@TASK_UTILS.register_module()
class RoundedAnchorGenerator(AnchorGenerator):
    """mmdet's anchors with corners rounded to whole pixels, as torchvision's are.

    Args:
        **kwargs: Of mmdet's ``AnchorGenerator``.
    """

    def gen_single_level_base_anchors(self, *args, **kwargs) -> Tensor:
        """(A, 4) xyxy around the origin."""
        return super().gen_single_level_base_anchors(*args, **kwargs).round()
