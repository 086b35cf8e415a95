"""The head that draws a heat map per keypoint."""

import itertools

import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import InstanceList, OptConfigType, OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor

from ccop_mm.detection.keypoints import decode_keypoints, encode_keypoints
from ccop_mm.errors import InputError


@MODELS.register_module()
class KeypointHead(BaseModule):
    """Eight 3x3 convolutions, a deconvolution and a bilinear resize: 14x14 features to 56x56 logits per keypoint.

    The loss is the softmax cross entropy over each map's cells (Mask R-CNN, Sec. 5), for the labeled keypoints that lie
    in their RoI.

    Args:
        num_keypoints (int): K. All categories share them.
        in_channels (int): Channels of the RoI features.
        num_convs (int): Convolutions before the deconvolution; 8 in Mask R-CNN.
        conv_out_channels (int): Their channels; 512 in Mask R-CNN.
        upscale (int): Factor of the bilinear resize after the deconvolution, which doubles the side by itself.
        normalizer (str | float): What the summed loss is divided by. ``'visible'``: the number of keypoints in it, in
            this process's batch (torchvision; Detectron2's default). A number: that many per image, so that keypoints
            of images with few of them do not weigh more; Detectron2's other choice is
            ``num_keypoints * sampler.num * sampler.pos_fraction``.
        loss_keypoint (dict, optional): A loss over (N, cells) logits and (N,) cells that takes ``avg_factor``; default:
            the cross entropy.
        conv_cfg, norm_cfg (dict, optional): For the convolutions.
        init_cfg (dict, optional): Default: normal weights by fan-out, zero biases, as both peers.
    """

    def __init__(
        self,
        num_keypoints: int,
        in_channels: int = 256,
        num_convs: int = 8,
        conv_out_channels: int = 512,
        upscale: int = 2,
        normalizer: str | float = 'visible',
        loss_keypoint: OptConfigType = None,
        conv_cfg: OptConfigType = None,
        norm_cfg: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type='Kaiming', layer=['Conv2d', 'ConvTranspose2d'], mode='fan_out', nonlinearity='relu')
        super().__init__(init_cfg=init_cfg)
        if normalizer != 'visible' and not (isinstance(normalizer, (int, float)) and normalizer > 0):
            raise InputError(f"KeypointHead: normalizer is 'visible' or a number above 0, got {normalizer!r}")
        self.num_keypoints = num_keypoints
        self.upscale = upscale
        self.normalizer = normalizer
        channels = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.Sequential(
            *(
                ConvModule(before, after, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
                for before, after in itertools.pairwise(channels)
            )
        )
        self.deconv = nn.ConvTranspose2d(channels[-1], num_keypoints, 4, stride=2, padding=1)
        self.loss_keypoint = MODELS.build(loss_keypoint or dict(type='CrossEntropyLoss', use_sigmoid=False))

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, C, s, s) to logits (R, K, m, m) with m = 2 * upscale * s; R may be 0."""
        x = self.deconv(self.convs(x))
        return F.interpolate(x, scale_factor=float(self.upscale), mode='bilinear', align_corners=False)

    def get_targets(self, keypoints: Tensor, visible: Tensor, rois: Tensor, roi_size: int) -> tuple[Tensor, Tensor]:
        """:func:`encode_keypoints` for the map that ``roi_size`` features along a side give."""
        return encode_keypoints(keypoints, visible, rois, 2 * self.upscale * roi_size)

    def loss(self, logits: Tensor, cells: Tensor, valid: Tensor, num_images: int) -> dict:
        """The loss of a batch.

        Args:
            logits (Tensor): (R, K, m, m).
            cells (Tensor): (R, K) long.
            valid (Tensor): (R, K) bool. If none is, or R is 0, the loss is 0 and every parameter has a gradient of 0.
            num_images (int): Of the batch.

        Returns:
            dict: ``loss_keypoint``, a scalar.
        """
        total = valid.sum().clamp(min=1) if self.normalizer == 'visible' else self.normalizer * num_images
        return dict(loss_keypoint=self.loss_keypoint(logits.flatten(2)[valid], cells[valid], avg_factor=total))

    def predict_by_feat(self, logits: Tensor, results_list: InstanceList) -> InstanceList:
        """Adds ``keypoints`` (n, K, 2) and ``keypoint_scores`` (n, K) to each image's detections.

        Args:
            logits (Tensor): (R, K, m, m) for all images' boxes, one after the other.
            results_list (list[InstanceData]): With ``bboxes`` in the coordinates of the network's input; so are the
                keypoints.
        """
        for maps, results in zip(logits.split([len(results) for results in results_list]), results_list, strict=True):
            results.keypoints, _, results.keypoint_scores = decode_keypoints(maps, results.bboxes)
        return results_list
