"""Mapping of checkpoint keys: encoder of a CCOP checkpoint, and its levels in the FPN of a detector."""

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from ccop_mm.utils.errors import InputError

# Parts of CCOP that a detector uses: the query encoder.
PARTS = ('backbone.', 'neck.')
# Parts of CCOP that only pre-training uses.
PRETRAINING_ONLY = (
    'encoder_k.',
    'image_queue.',
    'object_queue.',
    'image_projector.',
    'object_projector.',
    'data_preprocessor.',
)
# Heads of mmdet's two-stage and single-stage detectors; a pre-training checkpoint contains none of them.
DETECTION_HEADS = ('rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.')

# (blocks per stage, whether a block has a third convolution) -> depth (He et al., 2016, Table 1).
RESNET_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

_FPN_LEVEL = re.compile(r'neck\.(lateral_convs|fpn_convs)\.(\d+)\.(.+)')


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a state dict as a plain tuple."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def has_fpn(keys: Iterable[str]) -> bool:
    """Returns whether keys in mmdet's naming include an FPN."""
    return any(key.startswith(PARTS[1]) for key in keys)


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the key prefixes of DDP and ``torch.compile``: ``module.`` on all keys, ``_orig_mod.`` anywhere.

    Args:
        state (Mapping[str, Tensor]): State dict of a wrapped or bare model.

    Returns:
        dict[str, Tensor]: The same tensors with the keys of the bare model.

    Raises:
        InputError: Two keys become equal.
    """
    bare = {key: re.sub(r'(?<![^.])_orig_mod\.', '', key) for key in state}
    while bare and all(name.startswith('module.') for name in bare.values()):
        bare = {key: name.removeprefix('module.') for key, name in bare.items()}
    stripped: dict[str, Tensor] = {}
    for key, name in bare.items():
        if name in stripped:
            raise InputError(
                f'two keys of the checkpoint become {name} without "module." and "_orig_mod.": '
                'save the state dict of the bare model'
            )
        stripped[name] = state[key]
    return stripped


def select_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects backbone and neck of a CCOP checkpoint, or of an export with its keys.

    Args:
        state (Mapping[str, Tensor]): State dict without wrapper prefixes.

    Returns:
        dict[str, Tensor]: Tensors under ``backbone.*`` and ``neck.*``.

    Raises:
        InputError: The checkpoint is one of a detector, or contains keys that CCOP does not have.
    """
    check_pretraining(state)
    return add_batch_counters({key: tensor for key, tensor in state.items() if key.startswith(PARTS)})


def add_batch_counters(encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds ``num_batches_tracked`` = 0 to all BN layers if the file contains no such counter, as torch does.

    Old files and some converters omit the counters. No layer of an encoder uses their value.
    """
    if any(key.endswith('.num_batches_tracked') for key in encoder):
        return encoder
    layers = [key.removesuffix('running_var') for key in encoder if key.endswith('.running_var')]
    return {**encoder, **{f'{layer}num_batches_tracked': torch.tensor(0) for layer in layers}}


def resnet_depth(keys: Iterable[str]) -> int | None:
    """Returns the depth of the ResNet under ``backbone.``, or None if its blocks match no known depth."""
    matches = [re.match(r'backbone\.layer([1-4])\.(\d+)\.(conv3\.)?', key) for key in keys]
    blocks = {(match[1], match[2]) for match in matches if match}
    per_stage = tuple(sum(stage == name for stage, _ in blocks) for name in '1234')
    return RESNET_DEPTHS.get((per_stage, any(match and match[3] for match in matches)))


def check_pretraining(keys: Collection[str]) -> None:
    """Checks that all keys belong to CCOP.

    Args:
        keys (Collection[str]): Keys of a checkpoint.

    Raises:
        InputError: The checkpoint is one of a detector, or contains keys that CCOP does not have.
    """
    heads = [key for key in keys if key.startswith(DETECTION_HEADS)]
    if heads:
        raise InputError(
            f'this is a detection checkpoint (it contains {heads[0]}), not a pre-training checkpoint: '
            'use load_from to initialize a detector from another detector'
        )
    unknown = [key for key in keys if not key.startswith(PARTS + PRETRAINING_ONLY)]
    if unknown:
        raise InputError(
            f'{len(unknown)} of {len(keys)} keys do not belong to CCOP (first: {unknown[0]}): '
            'use a checkpoint of a CCOP pre-training run'
        )


def pair_keys(
    detector: Mapping[str, tuple[int, ...]],
    checkpoint: Mapping[str, tuple[int, ...]],
    first_level: int = 0,
    num_levels: int = 4,
) -> dict[str, str]:
    """Maps every backbone and FPN key of a detector to its key in a checkpoint.

    CCOP's FPN starts at C2: its level j reads stage j of the backbone. If the FPN of a detector starts at stage
    ``first_level`` (RetinaNet: 1, which is C3), its level i reads level ``i + first_level`` of the checkpoint. Levels
    are matched by stage and not by shape, because different levels have equal shapes. FPN convolutions above the
    levels of the backbone have no source, and levels of the checkpoint below ``first_level`` stay unused; all other
    keys must match.

    Args:
        detector (Mapping[str, tuple[int, ...]]): Shapes of the detector's tensors.
        checkpoint (Mapping[str, tuple[int, ...]]): Shapes of the checkpoint's tensors.
        first_level (int): Stage of the backbone (0 = C2) that the first FPN level of the detector reads.
        num_levels (int): Number of FPN levels of the detector that read the backbone.

    Returns:
        dict[str, str]: Key in the detector -> key in the checkpoint.

    Raises:
        InputError: The depths differ, or backbone or FPN keys are missing, have another shape, or stay unused. The
            message lists all of these keys, one per line.
    """
    depths = resnet_depth(checkpoint), resnet_depth(detector)
    if None not in depths and depths[0] != depths[1]:
        raise InputError(
            f'the checkpoint contains a ResNet-{depths[0]}, the detector a ResNet-{depths[1]}: '
            'use a checkpoint and a config of the same depth'
        )
    pairs = {}
    for key in detector:
        if key.startswith(PARTS):
            source = _source_key(key, first_level, num_levels)
            if source is not None:
                pairs[key] = source
    missing = [key for key, source in pairs.items() if source not in checkpoint]
    reshaped = [key for key, source in pairs.items() if detector[key] != checkpoint.get(source, detector[key])]
    used = set(pairs.values())
    unused = [
        key for key in checkpoint if key.startswith(PARTS) and key not in used and not _is_below_level(key, first_level)
    ]
    if missing or reshaped or unused:
        raise InputError(_describe_mismatch(missing, reshaped, unused, pairs, detector, checkpoint))
    return pairs


def _source_key(key: str, first_level: int, num_levels: int) -> str | None:
    """Returns the checkpoint's key for a key of the detector; None for FPN convolutions above the backbone's levels."""
    match = _FPN_LEVEL.fullmatch(key)
    if not match:
        return key
    level = int(match[2])
    return f'neck.{match[1]}.{level + first_level}.{match[3]}' if level < num_levels else None


def _is_below_level(key: str, first_level: int) -> bool:
    """Returns whether a key of the checkpoint belongs to an FPN level below the first level of the detector."""
    match = _FPN_LEVEL.fullmatch(key)
    return match is not None and int(match[2]) < first_level


def _describe_mismatch(
    missing: list[str],
    reshaped: list[str],
    unused: list[str],
    pairs: Mapping[str, str],
    detector: Mapping[str, tuple[int, ...]],
    checkpoint: Mapping[str, tuple[int, ...]],
) -> str:
    """Formats a message with the counts on the first line, followed by one line per key."""

    def name(key: str) -> str:
        return key if pairs[key] == key else f'{key} (from {pairs[key]})'

    lines = [
        'the checkpoint does not match the backbone and FPN: '
        f'{len(missing)} keys missing, {len(reshaped)} with another shape, {len(unused)} unused: '
        'use a config with the same depth, FPN channels and norm layers'
    ]
    lines += [f'  missing from the checkpoint: {name(key)}' for key in missing]
    lines += [
        f'  shape differs: {name(key)}, {checkpoint[pairs[key]]} in the checkpoint, {detector[key]} in the detector'
        for key in reshaped
    ]
    lines += [f'  not used by the detector: {key}' for key in unused]
    return '\n'.join(lines)
