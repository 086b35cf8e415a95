"""Feature maps of a model by level: C2 to C5 of its backbone and P2 to P5 of its neck, named by their stride."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

#: Stride of each level in pixels.
STRIDES = {'C2': 4, 'C3': 8, 'C4': 16, 'C5': 32, 'P2': 4, 'P3': 8, 'P4': 16, 'P5': 32}
STAGES = ('C2', 'C3', 'C4', 'C5')
PYRAMID = ('P2', 'P3', 'P4', 'P5')


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Computes all feature maps of a batch.

    The stages of a ResNet are captured with forward hooks on ``backbone.layer1`` to ``layer4``, the names that
    OpenMMLab and torchvision use. They therefore do not depend on ``out_indices``: mmselfsup's MoCo, whose backbone
    returns C5 only, is supported. Of other backbones, the maps that they return are used.

    Args:
        model (nn.Module): Model with a ``backbone``. If it has ``embed_objects`` (as :class:`ccop_mm.models.CCOP`), the
            maps of its ``neck`` are included.
        images (Tensor): ``(B, 3, H, W)``, normalized.

    Returns:
        dict[str, Tensor]: Level name -> ``(B, C, ceil(H / stride), ceil(W / stride))`` in float32 or float64,
        contiguous: C and P with the binary logarithm of the stride, in the order of the model.
    """
    outputs, stages = _backbone_maps(model.backbone, images)
    maps: dict[str, Tensor] = {}
    for part in stages:
        maps[_level_name('C', images, part, maps)] = part
    if hasattr(model, 'embed_objects'):
        for part in model.neck(outputs):
            maps[_level_name('P', images, part, maps)] = part
    # mmcv's RoIAlign ignores strides and has no bfloat16 kernel, and half precision would round box coordinates.
    return {name: part.to(torch.promote_types(part.dtype, torch.float32)).contiguous() for name, part in maps.items()}


def _backbone_maps(backbone: nn.Module, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Returns the outputs of a backbone and its stages."""
    layers = [getattr(backbone, f'layer{number}', None) for number in range(1, 5)]
    if None in layers:
        outputs = tuple(backbone(images))
        return outputs, outputs
    stages: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, number=number: stages.update({number: output}))
        for number, layer in enumerate(layers)
    ]
    try:
        outputs = tuple(backbone(images))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, tuple(stages[number] for number in range(4))


def _level_name(kind: str, images: Tensor, part: Tensor, taken: dict[str, Tensor]) -> str:
    """Names a map by its stride: the smallest power of two that explains its size and is not taken."""
    for exponent in range(1, 9):
        name = f'{kind}{exponent}'
        if name not in taken and all(
            -(-side // 2**exponent) == cells for side, cells in zip(images.shape[2:], part.shape[2:], strict=True)
        ):
            return name
    return f'{kind}{round(math.log2(images.shape[3] / part.shape[3]))}'  # not padded: fewer cells


def normalize_views(preprocessor: nn.Module, views: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Stacks and normalizes images as a data preprocessor normalizes training views.

    Args:
        preprocessor (nn.Module): Data preprocessor of the model.
        views (Sequence[np.ndarray]): Images of one size, each (h, w, 3) uint8 BGR.
        device (torch.device): Device of the result.

    Returns:
        Tensor: ``(B, 3, h, w)`` float32.
    """
    batch = torch.from_numpy(np.stack(views)).to(device).permute(0, 3, 1, 2)  # (B, h, w, 3) -> (B, 3, h, w)
    if preprocessor._channel_conversion:
        batch = batch[:, [2, 1, 0]]
    batch = batch.float()
    return (batch - preprocessor.mean) / preprocessor.std if preprocessor._enable_normalize else batch
