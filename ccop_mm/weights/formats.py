"""Checkpoint formats of other projects: recognition, conversion of keys to mmdet's, and target formats of exports.

Only keys differ between the formats. All of them store the convolutions and norm layers in the same layout, so a
conversion copies the tensors unchanged.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.key_mapping import add_batch_counters

_DETECTRON2_RESNET = re.compile(r'bottom_up\.(?:stem|res([2-5])\.(\d+))\.(?:conv(\d)|shortcut)\.(norm\.)?(\w+)')
_DETECTRON2_FPN = re.compile(r'fpn_(lateral|output)(\d)\.(norm\.)?(\w+)')
_MMDET_RESNET = re.compile(r'backbone\.(?:layer([1-4])\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)')
_MMDET_FPN = re.compile(r'neck\.(lateral|fpn)_convs\.(\d)\.(conv|bn)\.(\w+)')
_TORCHVISION_RESNET = re.compile(r'(layer[1-4]\.\d+\.)?((conv|bn)\d|downsample\.[01])\.\w+')


def from_detectron2(key: str) -> str | None:
    """Converts a key, e.g. ``bottom_up.res2.0.conv1.norm.weight`` to ``backbone.layer1.0.bn1.weight``.

    Returns:
        str | None: mmdet's key, or None if the key belongs to neither a ResNet nor an FPN.
    """
    if match := _DETECTRON2_RESNET.fullmatch(key):
        stage, block, number, norm, rest = match.groups()
        if stage is None and number is None:
            return None  # the stem has no shortcut
        prefix = f'layer{int(stage) - 1}.{block}.' if stage else ''
        layer = f'downsample.{int(bool(norm))}' if number is None else f'{"bn" if norm else "conv"}{number}'
        return f'backbone.{prefix}{layer}.{rest}'
    if match := _DETECTRON2_FPN.fullmatch(key):
        kind, level, norm, rest = match.groups()
        convs = 'lateral_convs' if kind == 'lateral' else 'fpn_convs'
        return f'neck.{convs}.{int(level) - 2}.{"bn" if norm else "conv"}.{rest}'
    return None


def to_detectron2(key: str) -> str | None:
    """Inverse of :func:`from_detectron2`.

    Returns:
        str | None: detectron2's key, or None if the key belongs to neither a ResNet nor an FPN that starts at C2.
    """
    if match := _MMDET_RESNET.fullmatch(key):
        stage, block, kind, number, shortcut, rest = match.groups()
        prefix = f'res{int(stage) + 1}.{block}' if stage else 'stem'
        layer = 'shortcut' if shortcut else f'conv{number}'
        return f'bottom_up.{prefix}.{layer}.{"norm." if kind == "bn" or shortcut == "1" else ""}{rest}'
    if match := _MMDET_FPN.fullmatch(key):
        kind, level, layer, rest = match.groups()
        name = 'fpn_lateral' if kind == 'lateral' else 'fpn_output'
        return f'{name}{int(level) + 2}.{"norm." if layer == "bn" else ""}{rest}'
    return None


def from_torchvision(key: str) -> str | None:
    """Converts a key of a torchvision ResNet to mmdet's; None if it does not belong to the backbone."""
    return f'backbone.{key}' if _TORCHVISION_RESNET.fullmatch(key) else None


def to_torchvision(key: str) -> str | None:
    """Converts a key to that of a torchvision or timm ResNet; None if it does not belong to the backbone."""
    return key.removeprefix('backbone.') if key.startswith('backbone.') else None


@dataclass(frozen=True)
class ForeignFormat:
    """Checkpoint format of another project.

    Args:
        title (str): Name of the format in messages.
        marker (str): Key prefix that identifies the format.
        prefix (str): Prefix of the encoder's keys.
        rename (Callable): Converts a key without ``prefix`` to mmdet's; None for other parts.
        dropped (tuple[str, ...]): Prefixes of the keys that belong to pre-training or a classifier and are dropped.
    """

    title: str
    marker: str
    prefix: str
    rename: Callable[[str], str | None]
    dropped: tuple[str, ...] = ()


#: Foreign formats that can be read. The first one whose marker occurs in a file is used: specific markers come first.
FOREIGN_FORMATS = {
    'ccop-release': ForeignFormat(
        title="the CCOP authors' release",
        marker='backbone_q.bottom_up.',
        prefix='backbone_q.',
        rename=from_detectron2,
        dropped=(
            *('backbone_k.', 'img_neck_q.', 'img_neck_k.', 'roi_neck_q.', 'roi_neck_k.'),
            *('img_queue', 'roi_queue', 'pixel_mean', 'pixel_std', 'iter'),
        ),
    ),
    'detectron2': ForeignFormat('detectron2', 'backbone.bottom_up.', 'backbone.', from_detectron2),
    # github.com/facebookresearch/moco; fc is the projection head.
    'mocov2': ForeignFormat(
        title='MoCo v2',
        marker='encoder_q.',
        prefix='encoder_q.',
        rename=from_torchvision,
        dropped=('encoder_q.fc.', 'encoder_k.', 'queue'),
    ),
    # The keys of the backbone are mmdet's.
    'mmselfsup-moco': ForeignFormat(
        title="mmselfsup's MoCo or DenseCL",
        marker='neck.mlp.',
        prefix='backbone.',
        rename=from_torchvision,
        dropped=('neck.mlp.', 'neck.mlp2.', 'encoder_k.', 'queue', 'head.', 'data_preprocessor.'),
    ),
    # fc0, bn0, ... is the projector, target_net BYOL's average.
    'mmselfsup-siamese': ForeignFormat(
        title="mmselfsup's SimCLR, SimSiam or BYOL",
        marker='neck.fc0.',
        prefix='backbone.',
        rename=from_torchvision,
        dropped=('neck.fc', 'neck.bn', 'target_net.', 'head.', 'data_preprocessor.'),
    ),
    # timm's ResNets have the same keys.
    'torchvision': ForeignFormat('a torchvision or timm ResNet', 'layer1.', '', from_torchvision, ('fc.',)),
}

#: Formats that can be written: conversion of mmdet's keys, which returns None for keys that the format omits.
TARGETS: dict[str, Callable[[str], str | None]] = {
    'ccop': lambda key: key,
    'torchvision': to_torchvision,
    'timm': to_torchvision,
    'detectron2': lambda key: f'backbone.{name}' if (name := to_detectron2(key)) else None,
}

#: Former names of target formats, which stay accepted.
TARGET_ALIASES = {'mmdet': 'ccop'}


def detect_foreign_format(keys: Iterable[str]) -> str | None:
    """Returns the name of the foreign format that keys belong to, or None if they belong to none.

    Args:
        keys (Iterable[str]): Keys of a state dict without wrapper prefixes.
    """
    keys = list(keys)
    for name, foreign in FOREIGN_FORMATS.items():
        if any(key.startswith(foreign.marker) for key in keys):
            return name
    return None


def convert_foreign(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Converts backbone, and FPN if present, of a foreign state dict to mmdet's keys.

    Args:
        state (Mapping[str, Tensor]): State dict without wrapper prefixes.
        name (str): Key of :data:`FOREIGN_FORMATS`.

    Returns:
        dict[str, Tensor]: Tensors under ``backbone.*`` and ``neck.*``.

    Raises:
        InputError: The state dict contains keys that the format does not have.
    """
    foreign = FOREIGN_FORMATS[name]
    encoder, unknown = {}, []
    for key, tensor in state.items():
        if key.startswith(foreign.dropped):
            continue
        renamed = foreign.rename(key.removeprefix(foreign.prefix)) if key.startswith(foreign.prefix) else None
        if renamed is None:
            unknown.append(key)
        else:
            encoder[renamed] = tensor
    if unknown:
        raise InputError(
            f'the keys are those of {foreign.title}, but {len(unknown)} of {len(state)} keys do not belong to it '
            f'(first: {unknown[0]}): use a checkpoint of a pre-training run, not of a detector'
        )
    return add_batch_counters(encoder)
