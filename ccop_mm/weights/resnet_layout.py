"""The tensors of a complete ResNet or ResNeXt, and of its FPN, that a state dict is part of."""

import re

import torch
from mmdet.models import FPN, ResNet, ResNeXt
from torch import nn

from ccop_mm.weights.formats import from_torchvision, to_detectron2
from ccop_mm.weights.key_mapping import PARTS, Shapes, resnet_depth, shapes
from ccop_mm.weights.pairing import lateral_shapes


def expected_shapes(state: Shapes) -> dict[str, tuple[int, ...]] | None:
    """Computes the shapes of all tensors of the ResNet or ResNeXt, and of its neck, that a state dict is part of.

    Args:
        state (Mapping[str, tuple[int, ...]]): Shapes of tensors with mmdet's keys.

    Returns:
        dict[str, tuple[int, ...]] | None: Shapes of the complete encoder, including tensors missing from ``state``. A
        neck other than an FPN is taken from ``state``. None if the backbone is not a complete ResNet-18, -34, -50, -101
        or -152, or has other keys than torchvision's.
    """
    names = [key.removeprefix(PARTS[0]) for key in state if key.startswith(PARTS[0])]
    depth = resnet_depth(state)
    if depth is None or 'conv1.weight' not in names or not all(map(from_torchvision, names)):
        return None
    width = state['backbone.conv1.weight'][0]
    neck = {key: shape for key, shape in state.items() if key.startswith(PARTS[1])}
    with torch.device('meta'):
        expected = _prefixed(PARTS[0], _build_backbone(depth, width, state))
        if neck and all(map(to_detectron2, neck)):
            levels = {int(match[1]) for key in neck if (match := re.match(r'neck\.fpn_convs\.(\d+)\.', key))}
            fpn = _prefixed(PARTS[1], _build_fpn(depth, width, neck, max(levels, default=0) + 1))
            # Pre-training leaves out the output convolutions of levels that are too coarse for its views.
            coarser = tuple(f'neck.fpn_convs.{level}.' for level in range(max(levels, default=0) + 1, 4))
            neck = {key: shape for key, shape in fpn.items() if not key.startswith(coarser)}
    return {**expected, **neck}


def _build_backbone(depth: int, width: int, state: Shapes) -> nn.Module:
    """Builds a ResNet, or a ResNeXt if the convolutions have groups or other widths (Xie et al., CVPR 2017)."""
    out, per_group = state.get('backbone.layer1.0.conv2.weight', (width, width))[:2]
    if depth >= 50 and (out, per_group) != (width, width):
        return ResNeXt(depth=depth, groups=out // per_group, base_width=per_group, base_channels=width, norm_eval=False)
    return ResNet(depth, base_channels=width, norm_eval=False)


def _build_fpn(depth: int, width: int, neck: Shapes, num_outs: int) -> nn.Module:
    """Builds an FPN with the levels, channels and norm layers of a state dict."""
    channels = [width * 2**stage * (4 if depth >= 50 else 1) for stage in range(4)]
    num_levels = len(lateral_shapes(neck)) or 4
    extra = neck.get(f'neck.fpn_convs.{num_levels}.conv.weight')
    normed = {key.split('.')[1] for key in neck if '.bn.' in key}
    return FPN(
        channels,
        next(shape[0] for shape in neck.values() if shape),
        num_outs=max(num_outs, num_levels),
        start_level=max(4 - num_levels, 0),
        add_extra_convs=False if extra is None else 'on_input' if extra[1] == channels[-1] else 'on_output',
        norm_cfg=dict(type='BN') if normed else None,
        no_norm_on_lateral=bool(normed) and 'lateral_convs' not in normed,
    )


def _prefixed(prefix: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {f'{prefix}{key}': shape for key, shape in shapes(module.state_dict()).items()}
