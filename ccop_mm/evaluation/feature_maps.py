"""The maps of a model, stage by stage: C2 to C5 of its ResNet and, where it has an FPN, P2 to P5."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

#: Pixels per cell of each map.
STRIDES = {'C2': 4, 'C3': 8, 'C4': 16, 'C5': 32, 'P2': 4, 'P3': 8, 'P4': 16, 'P5': 32}
STAGES = ('C2', 'C3', 'C4', 'C5')
PYRAMID = ('P2', 'P3', 'P4', 'P5')


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """All maps of a batch, named C2 to C5 and P2 to P5.

    The stages are taken where they are made (``backbone.layer1`` to ``layer4``, as every ResNet of OpenMMLab and
    torchvision calls them), whatever the backbone hands on: mmselfsup's MoCo, which hands on C5 alone, can be compared.

    Args:
        model (nn.Module): Has ``backbone``; with ``embed_objects`` (as :class:`ccop_mm.models.CCOP`) its ``neck`` is an
            FPN from C2 on.
        images (Tensor): ``(B, 3, H, W)``, normalized.

    Returns:
        dict[str, Tensor]: Per name ``(B, C, ceil(H / stride), ceil(W / stride))`` in float32 or better.
    """
    stages = _stages(model.backbone, images)
    maps = dict(zip(STAGES, stages, strict=True))
    if hasattr(model, 'embed_objects'):
        maps.update(zip(PYRAMID, model.neck(stages), strict=True))
    # RoIAlign has no bfloat16 kernel, and half precision would move boxes: float32 or better.
    return {name: part.to(torch.promote_types(part.dtype, torch.float32)) for name, part in maps.items()}


def _stages(backbone: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    layers = [getattr(backbone, f'layer{number}', None) for number in range(1, 5)]
    if None in layers:
        return tuple(backbone(images))
    found = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, number=number: found.update({number: output}))
        for number, layer in enumerate(layers)
    ]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found[number] for number in range(4))


def normalize_views(preprocessor: nn.Module, views: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Equal-sized images, each (h, w, 3) uint8 BGR, as the preprocessor normalizes training views: (B, 3, h, w)."""
    batch = torch.from_numpy(np.stack(views)).to(device).permute(0, 3, 1, 2)  # (B, h, w, 3) -> (B, 3, h, w)
    if preprocessor._channel_conversion:
        batch = batch[:, [2, 1, 0]]
    batch = batch.float()
    return (batch - preprocessor.mean) / preprocessor.std if preprocessor._enable_normalize else batch
