"""Head that predicts one heatmap per keypoint."""

import itertools

import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import InstanceList, OptConfigType, OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor

from ccop_mm.detection.keypoints import decode_keypoints, encode_keypoints


@MODELS.register_module()
class KeypointHead(BaseModule):
    """Keypoint head of Mask R-CNN: 3x3 convolutions, a deconvolution and bilinear upsampling.

    With the defaults, 14x14 RoI features become 56x56 logits per keypoint. The loss is the softmax cross entropy over
    the cells of each heatmap (Mask R-CNN, Sec. 5), for labeled keypoints inside their RoI.

    Args:
        num_keypoints (int): Number of keypoints K, shared by all categories.
        in_channels (int): Number of channels of the RoI features.
        num_convs (int): Number of convolutions before the deconvolution. Mask R-CNN uses 8.
        conv_out_channels (int): Number of channels of these convolutions. Mask R-CNN uses 512.
        upscale (int): Factor of the bilinear upsampling. The deconvolution before it doubles the resolution as well.
        normalizer (str | float): Divisor of the summed loss. ``'visible'``: the number of keypoints in the sum, over
            the batch of this process (torchvision; the default of Detectron2). A number: this many per image, which
            avoids large weights for the keypoints of images with few labels. Detectron2's alternative is
            ``num_keypoints * sampler.num * sampler.pos_fraction``.
        loss_keypoint (dict, optional): Config of a loss on logits (N, cells) and target cells (N,) that accepts
            ``avg_factor``. Defaults to cross entropy.
        conv_cfg (dict, optional): Config of the convolutions.
        norm_cfg (dict, optional): Config of their normalization layers.
        init_cfg (dict, optional): Config of the weight initialization. Defaults to Kaiming normal (fan-out) with zero
            biases, as in torchvision and Detectron2.

    Raises:
        ValueError: If ``normalizer`` is neither ``'visible'`` nor a positive number.
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
            raise ValueError(f"normalizer must be 'visible' or a positive number, got {normalizer!r}")
        self.num_keypoints = num_keypoints
        self.upscale = upscale
        self.normalizer = normalizer
        channels = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.Sequential(
            *(
                ConvModule(in_dim, out_dim, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
                for in_dim, out_dim in itertools.pairwise(channels)
            )
        )
        self.deconv = nn.ConvTranspose2d(channels[-1], num_keypoints, 4, stride=2, padding=1)
        self.loss_keypoint = MODELS.build(loss_keypoint or dict(type='CrossEntropyLoss', use_sigmoid=False))

    def forward(self, x: Tensor) -> Tensor:
        """Predicts heatmaps.

        Args:
            x (Tensor): RoI features (R, C, s, s); R may be 0.

        Returns:
            Tensor: Logits (R, K, m, m) with m = 2 * upscale * s.
        """
        x = self.deconv(self.convs(x))
        return F.interpolate(x, scale_factor=float(self.upscale), mode='bilinear', align_corners=False)

    def get_targets(self, keypoints: Tensor, visible: Tensor, rois: Tensor, roi_size: int) -> tuple[Tensor, Tensor]:
        """Computes the target cells with :func:`encode_keypoints`.

        Args:
            keypoints (Tensor): Ground truth (R, K, 2), x and y in pixels.
            visible (Tensor): Visibility (R, K), positive where the keypoint is labeled.
            rois (Tensor): RoIs (R, 4), xyxy in pixels.
            roi_size (int): Side length s of the RoI features.

        Returns:
            tuple[Tensor, Tensor]: Target cells (R, K) and a mask (R, K) of valid targets.
        """
        return encode_keypoints(keypoints, visible, rois, 2 * self.upscale * roi_size)

    def loss(self, logits: Tensor, cells: Tensor, valid: Tensor, num_images: int) -> dict:
        """Computes the loss of a batch.

        Args:
            logits (Tensor): Predicted logits (R, K, m, m).
            cells (Tensor): Target cells (R, K), int64.
            valid (Tensor): Mask (R, K) of valid targets. Without any, or with R = 0, the loss is 0 and all parameters
                receive a zero gradient.
            num_images (int): Number of images in the batch.

        Returns:
            dict: The scalar ``loss_keypoint``.
        """
        total = valid.sum().clamp(min=1) if self.normalizer == 'visible' else self.normalizer * num_images
        return dict(loss_keypoint=self.loss_keypoint(logits.flatten(2)[valid], cells[valid], avg_factor=total))

    def predict_by_feat(self, logits: Tensor, results_list: InstanceList) -> InstanceList:
        """Adds ``keypoints`` (n, K, 2) and ``keypoint_scores`` (n, K) to the detections of each image.

        Args:
            logits (Tensor): Logits (R, K, m, m) of the boxes of all images, in the order of ``results_list``.
            results_list (list[InstanceData]): Detections of each image. ``bboxes``, and thus the keypoints, are in the
                coordinates of the network input.

        Returns:
            list[InstanceData]: The same detections, modified in place.
        """
        for maps, results in zip(logits.split([len(results) for results in results_list]), results_list, strict=True):
            results.keypoints, _, results.keypoint_scores = decode_keypoints(maps, results.bboxes)
        return results_list
