"""The names that ResNets and FPNs have in the formats people use: to mmdet's, and from them.

Names differ, tensors do not: all formats hold the same convolutions and norm layers in the same layout, so a
conversion copies bits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ccop_mm.errors import InputError
from ccop_mm.weights.keys import PARTS, PRETRAINING_ONLY, check_pretraining, strip_wrappers

_DETECTRON2_RESNET = re.compile(r'bottom_up\.(?:stem|res([2-5])\.(\d+))\.(?:conv(\d)|shortcut)\.(norm\.)?(\w+)')
_DETECTRON2_FPN = re.compile(r'fpn_(lateral|output)(\d)\.(norm\.)?(\w+)')
_MMDET_RESNET = re.compile(r'backbone\.(?:layer([1-4])\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)')
_MMDET_FPN = re.compile(r'neck\.(lateral|fpn)_convs\.(\d)\.(conv|bn)\.(\w+)')
_TORCHVISION_RESNET = re.compile(r'(layer[1-4]\.\d+\.)?((conv|bn)\d|downsample\.[01])\.\w+')


def from_detectron2(key: str) -> str | None:
    """``bottom_up.res2.0.conv1.norm.weight`` -> ``backbone.layer1.0.bn1.weight``; None for a name of another part."""
    if match := _DETECTRON2_RESNET.fullmatch(key):
        stage, block, number, norm, rest = match.groups()
        if stage is None and number is None:
            return None  # the stem has no shortcut
        place = f'layer{int(stage) - 1}.{block}.' if stage else ''
        layer = f'downsample.{int(bool(norm))}' if number is None else f'{"bn" if norm else "conv"}{number}'
        return f'backbone.{place}{layer}.{rest}'
    if match := _DETECTRON2_FPN.fullmatch(key):
        kind, level, norm, rest = match.groups()
        convs = 'lateral_convs' if kind == 'lateral' else 'fpn_convs'
        return f'neck.{convs}.{int(level) - 2}.{"bn" if norm else "conv"}.{rest}'
    return None


def to_detectron2(key: str) -> str | None:
    """The other way; None for a name that is not of a ResNet or of an FPN from C2."""
    if match := _MMDET_RESNET.fullmatch(key):
        stage, block, kind, number, shortcut, rest = match.groups()
        place = f'res{int(stage) + 1}.{block}' if stage else 'stem'
        layer = 'shortcut' if shortcut else f'conv{number}'
        return f'bottom_up.{place}.{layer}.{"norm." if kind == "bn" or shortcut == "1" else ""}{rest}'
    if match := _MMDET_FPN.fullmatch(key):
        kind, level, layer, rest = match.groups()
        name = 'fpn_lateral' if kind == 'lateral' else 'fpn_output'
        return f'{name}{int(level) + 2}.{"norm." if layer == "bn" else ""}{rest}'
    return None


def _torchvision_backbone(key: str) -> str | None:
    return f'backbone.{key}' if _TORCHVISION_RESNET.fullmatch(key) else None


@dataclass(frozen=True)
class Source:
    """A format that can be read.

    Attributes:
        title: What a message calls it.
        marker: Beginning of keys that tell the format; the first format in :data:`SOURCES` that has one is it.
        prefix: What stands before the names of the encoder.
        rename: Name without the prefix -> mmdet's name, or None.
        dropped: Beginnings of keys that serve the pre-training or a classifier alone.
    """

    title: str
    marker: str
    prefix: str
    rename: Callable[[str], str | None]
    dropped: tuple[str, ...] = ()


#: Every format that is recognized, the one with the most telling marker first.
SOURCES = {
    'ccop-release': Source(
        "the authors' release",
        'backbone_q.bottom_up.',
        'backbone_q.',
        from_detectron2,
        (
            *('backbone_k.', 'img_neck_q.', 'img_neck_k.', 'roi_neck_q.', 'roi_neck_k.'),
            *('img_queue', 'roi_queue', 'pixel_mean', 'pixel_std', 'iter'),
        ),
    ),
    'detectron2': Source('detectron2', 'backbone.bottom_up.', 'backbone.', from_detectron2),
    # github.com/facebookresearch/moco; fc is the projection.
    'mocov2': Source(
        'MoCo v2',
        'encoder_q.',
        'encoder_q.',
        _torchvision_backbone,
        ('encoder_q.fc.', 'encoder_k.', 'queue'),
    ),
    # Its backbone has mmdet's names.
    'mmselfsup-moco': Source(
        "mmselfsup's MoCo",
        'neck.mlp.',
        'backbone.',
        _torchvision_backbone,
        ('neck.mlp.', 'encoder_k.', 'queue', 'head.', 'data_preprocessor.'),
    ),
    'mmdet': Source('CCOP', 'backbone.', '', lambda key: key, PRETRAINING_ONLY),
    # timm's ResNets have torchvision's names.
    'torchvision': Source('a torchvision or timm ResNet', 'layer1.', '', _torchvision_backbone, ('fc.',)),
}

#: Formats that can be written: mmdet's name -> theirs, or None for what they leave out.
TARGETS: dict[str, Callable[[str], str | None]] = {
    'mmdet': lambda key: key,
    'torchvision': lambda key: key.removeprefix('backbone.') if key.startswith('backbone.') else None,
    'timm': lambda key: key.removeprefix('backbone.') if key.startswith('backbone.') else None,
    'detectron2': lambda key: f'backbone.{to_detectron2(key)}',
}


def to_mmdet(state: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Takes the ResNet, and the FPN if there is one, out of a state dict of any format in :data:`SOURCES`.

    Counters of norm layers (``num_batches_tracked``), which old files and some conversions lack altogether, become 0,
    as torch itself has it; they matter to no layer that is built here.

    Args:
        state (dict[str, Tensor]): As read, names of wrappers included.

    Returns:
        tuple[str, dict[str, Tensor]]: The format, and the tensors under ``backbone.*`` and ``neck.*``.

    Raises:
        InputError: The format is unknown, the file is a detector's, or it holds keys that its format does not have.
    """
    state = strip_wrappers(state)
    name = next((name for name, source in SOURCES.items() if any(key.startswith(source.marker) for key in state)), None)
    if name in (None, 'mmdet'):
        check_pretraining(state)
        name = 'mmdet'
    source = SOURCES[name]
    encoder, unknown = {}, []
    for key, tensor in state.items():
        if key.startswith(source.dropped):
            continue
        renamed = source.rename(key.removeprefix(source.prefix)) if key.startswith(source.prefix) else None
        if renamed is None:
            unknown.append(key)
        else:
            encoder[renamed] = tensor
    if unknown:
        raise InputError(
            f'it has the names of {source.title}, but {len(unknown)} of its {len(state)} keys belong to no part of it '
            f'(first: {unknown[0]}): name a checkpoint of a pre-training, not of a detector'
        )
    statistics = [key.removesuffix('running_var') for key in encoder if key.endswith('.running_var')]
    if not any(key.endswith('.num_batches_tracked') for key in encoder):
        encoder.update({f'{key}num_batches_tracked': torch.tensor(0) for key in statistics})
    return name, encoder


def has_fpn(encoder) -> bool:
    """Whether mmdet's names hold an FPN."""
    return any(key.startswith(PARTS[1]) for key in encoder)
