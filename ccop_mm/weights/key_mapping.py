"""Keys of a checkpoint: wrapper prefixes, and the parts of CCOP and of detectors that they belong to."""

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from ccop_mm.utils.errors import InputError

#: Shapes of tensors by key.
Shapes = Mapping[str, tuple[int, ...]]

# Parts of CCOP that a detector uses: the query encoder.
PARTS = ('backbone.', 'neck.')
# Parts of CCOP that only pre-training uses.
PRETRAINING_ONLY = (
    'encoder_k.',
    'image_queue.',
    'object_queue.',
    'image_projector.',
    'object_projector.',
    'level_projector.',
    'data_preprocessor.',
)
# Heads of mmdet's detectors, such as ``rpn_head.`` and ``bbox_head.``; a pre-training checkpoint contains none of them.
_DETECTION_HEAD = re.compile(r'\w+_head\.')

# (blocks per stage, whether a block has a third convolution) -> depth (He et al., 2016, Table 1).
RESNET_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a state dict as a plain tuple."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def has_neck(keys: Iterable[str]) -> bool:
    """Returns whether keys in mmdet's naming include a neck."""
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
    heads = [key for key in keys if _DETECTION_HEAD.match(key)]
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
