"""Which key of a pre-training checkpoint serves which key of a detector."""

import re

from ccop_mm.errors import InputError

# What a detector takes from CCOP's query encoder.
PARTS = ('backbone.', 'neck.')
# What serves the pre-training alone and is dropped.
PRETRAINING_ONLY = (
    'encoder_k.',
    'image_queue.',
    'object_queue.',
    'image_projector.',
    'object_projector.',
    'data_preprocessor.',
)
# Heads of mmdet's two-stage and single-stage detectors; a pre-training checkpoint holds none.
DETECTION_HEADS = ('rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.')

# Blocks per stage, and whether a block has a third convolution (He et al., 2016, Table 1).
RESNET_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

_FPN_LEVEL = re.compile(r'neck\.(lateral_convs|fpn_convs)\.(\d+)\.(.+)')


def shapes(state):
    """Shape of every tensor of a state dict, as plain tuples."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def strip_wrappers(state):
    """Removes what DDP and ``torch.compile`` add to the names: ``module.`` before every key, ``_orig_mod.`` anywhere.

    Args:
        state (Mapping[str, Tensor]): A state dict.

    Returns:
        dict[str, Tensor]: The same tensors under the names of the bare model.

    Raises:
        InputError: Two keys have the same bare name.
    """
    bare = {key: re.sub(r'(?<![^.])_orig_mod\.', '', key) for key in state}
    while bare and all(name.startswith('module.') for name in bare.values()):
        bare = {key: name.removeprefix('module.') for key, name in bare.items()}
    stripped = {name: state[key] for key, name in bare.items()}
    if len(stripped) < len(state):
        raise InputError(
            'keys of the checkpoint are equal once "module." and "_orig_mod." are removed: '
            'save the state dict of the bare model'
        )
    return stripped


def resnet_depth(keys):
    """The depth of the ResNet under ``backbone.``, by the number and kind of its blocks; None if it is no known one."""
    matches = [re.match(r'backbone\.layer([1-4])\.(\d+)\.(conv3\.)?', key) for key in keys]
    blocks = {(match[1], match[2]) for match in matches if match}
    per_stage = tuple(sum(stage == name for stage, _ in blocks) for name in '1234')
    return RESNET_DEPTHS.get((per_stage, any(match and match[3] for match in matches)))


def check_pretraining(keys):
    """Refuses what is no pre-training checkpoint of CCOP, and no export of one.

    Args:
        keys (Collection[str]): The keys of the checkpoint.

    Raises:
        InputError: The checkpoint is a detector's, or holds tensors that CCOP does not have.
    """
    heads = [key for key in keys if key.startswith(DETECTION_HEADS)]
    if heads:
        raise InputError(
            f'this is a detection checkpoint (it holds {heads[0]}), not a pre-training one: '
            'to start a detector from another detector use load_from'
        )
    known = PARTS + PRETRAINING_ONLY
    unknown = [key for key in keys if not key.startswith(known)]
    if unknown:
        raise InputError(
            f'{len(unknown)} of its {len(keys)} keys belong to no part of CCOP (first: {unknown[0]}): '
            'name a checkpoint of a CCOP pre-training'
        )


def pair_keys(detector, checkpoint, first_level=0, num_levels=4):
    """Finds the source of every backbone and FPN tensor of a detector, or says in full why there is none.

    CCOP's FPN starts at C2: its level j reads stage j of the backbone. A detector whose FPN starts at stage
    ``first_level`` (RetinaNet: 1, which is C3) takes level ``i + first_level`` for its level i, never what merely has
    the same shape. Its convolutions above the backbone's levels have no source, and pre-trained levels below its first
    have no use; nothing else may be missing or unused.

    Args:
        detector (Mapping[str, tuple[int, ...]]): Shape of every tensor of the detector.
        checkpoint (Mapping[str, tuple[int, ...]]): Shape of every tensor of the checkpoint.
        first_level (int): Stage of the backbone (0 = C2) that the detector's first FPN level reads.
        num_levels (int): Number of FPN levels of the detector that read the backbone.

    Returns:
        dict[str, str]: Key of the detector -> key of the checkpoint.

    Raises:
        InputError: The depths differ; or a backbone or FPN key is missing, has another shape, or stays unused (with the
            lists of keys, one a line).
    """
    depths = resnet_depth(checkpoint), resnet_depth(detector)
    if None not in depths and depths[0] != depths[1]:
        raise InputError(
            f'the checkpoint holds a ResNet-{depths[0]}, the detector a ResNet-{depths[1]}: '
            'use a checkpoint and a config of one depth'
        )
    pairs = {}
    for key in detector:
        if key.startswith(PARTS):
            source = _source(key, first_level, num_levels)
            if source is not None:
                pairs[key] = source
    missing = [key for key, source in pairs.items() if source not in checkpoint]
    reshaped = [key for key, source in pairs.items() if detector[key] != checkpoint.get(source, detector[key])]
    used = set(pairs.values())
    unused = [key for key in checkpoint if key.startswith(PARTS) and key not in used and not _below(key, first_level)]
    if missing or reshaped or unused:
        raise InputError(_mismatch(missing, reshaped, unused, pairs, detector, checkpoint))
    return pairs


def _source(key, first_level, num_levels):
    """The checkpoint's name for a key of the detector; None for an FPN convolution above the backbone's levels."""
    match = _FPN_LEVEL.fullmatch(key)
    if not match:
        return key
    level = int(match[2])
    return f'neck.{match[1]}.{level + first_level}.{match[3]}' if level < num_levels else None


def _below(key, first_level):
    """Whether a key of the checkpoint belongs to an FPN level below the detector's first."""
    match = _FPN_LEVEL.fullmatch(key)
    return bool(match) and int(match[2]) < first_level


def _mismatch(missing, reshaped, unused, pairs, detector, checkpoint):
    """The counts on the first line, then every key on its own."""

    def named(key):
        return key if pairs[key] == key else f'{key} (from {pairs[key]})'

    lines = [
        'the checkpoint does not fit the backbone and FPN that are asked for: '
        f'{len(missing)} keys missing, {len(reshaped)} of another shape, {len(unused)} unused; '
        'depth, FPN channels and norm layers must be equal'
    ]
    lines += [f'  missing in the checkpoint: {named(key)}' for key in missing]
    lines += [
        f'  another shape: {named(key)}, {checkpoint[pairs[key]]} in the checkpoint, {detector[key]} in the detector'
        for key in reshaped
    ]
    lines += [f'  unused of the checkpoint: {key}' for key in unused]
    return '\n'.join(lines)
