"""Feature maps of a model by level: C2 to C5 of its backbone and, with an FPN, P2 to P5."""

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

    The stages are captured with forward hooks on ``backbone.layer1`` to ``layer4``, the names that the ResNets of
    OpenMMLab and torchvision use. They therefore do not depend on ``out_indices``: mmselfsup's MoCo, whose backbone
    returns C5 only, is supported.

    Args:
        model (nn.Module): Model with a ``backbone``. If it has ``embed_objects`` (as :class:`ccop_mm.models.CCOP`), its
            ``neck`` must be an FPN that starts at C2.
        images (Tensor): ``(B, 3, H, W)``, normalized.

    Returns:
        dict[str, Tensor]: Level name -> ``(B, C, ceil(H / stride), ceil(W / stride))`` in float32 or float64.
    """
    stages = _stages(model.backbone, images)
    maps = dict(zip(STAGES, stages, strict=True))
    if hasattr(model, 'embed_objects'):
        maps.update(zip(PYRAMID, model.neck(stages), strict=True))
    # mmcv's RoIAlign has no bfloat16 kernel, and half precision would round box coordinates.
    return {name: part.to(torch.promote_types(part.dtype, torch.float32)) for name, part in maps.items()}


def _stages(backbone: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    layers = [getattr(backbone, f'layer{number}', None) for number in range(1, 5)]
    if None in layers:
        return tuple(backbone(images))
    outputs: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, number=number: outputs.update({number: output}))
        for number, layer in enumerate(layers)
    ]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(outputs[number] for number in range(4))


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
