"""Pairing of the tensors of a backbone and a neck with those of a checkpoint, by name and shape."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.key_mapping import PARTS, Shapes, resnet_depth
from ccop_mm.weights.mismatch import Mismatch

# Keys of mmdet's FPN: a lateral convolution per level of the backbone, and a convolution per output.
_FPN_LEVEL = re.compile(r'neck\.(lateral_convs|fpn_convs)\.(\d+)\.(.+)')


@dataclass(frozen=True)
class Pairing:
    """Assignment of the tensors of a detector to those of a checkpoint.

    Attributes:
        sources (dict[str, str]): Key in the detector -> key in the checkpoint, for all tensors that are loaded.
        kept (tuple[str, ...]): Keys of the detector without a source, whose tensors keep their initialization.
        first_level (int): Level of the checkpoint's FPN that the first level of the detector's FPN is loaded from.
    """

    sources: dict[str, str]
    kept: tuple[str, ...]
    first_level: int


def pair_keys(
    detector: Shapes,
    checkpoint: Shapes,
    select_optional: Callable[[frozenset[str]], Collection[str]] = lambda missing: (),
    arguments: Mapping[str, Collection[str]] | None = None,
) -> Pairing:
    """Assigns every backbone and neck tensor of a detector to one of a checkpoint, or fails.

    Names and shapes must be equal, with one translation: an FPN that starts at C3 is loaded from the levels of an FPN
    that starts at C2 (:func:`find_first_level`), whose lower levels stay unused.

    Args:
        detector (Mapping[str, tuple[int, ...]]): Shapes of the detector's tensors. Keys of other parts are ignored.
        checkpoint (Mapping[str, tuple[int, ...]]): Shapes of the checkpoint's tensors.
        select_optional (Callable): Selects, from the keys of the detector that have no source, those that may keep
            their initialization. It is only called if there are such keys.
        arguments (Mapping[str, Collection[str]], optional): Names of the constructor arguments of ``'backbone'`` and
            ``'neck'``, which an error message recommends to change.

    Raises:
        InputError: Tensors of the detector are missing or have another shape, or tensors of the checkpoint stay unused.
            The first line states their number and what to change; lists follow if they are short.
    """
    detector, checkpoint = _encoder_part(detector), _encoder_part(checkpoint)
    depths = resnet_depth(checkpoint), resnet_depth(detector)
    if None not in depths and depths[0] != depths[1]:
        raise InputError(
            f'the checkpoint contains a ResNet-{depths[0]}, the model a ResNet-{depths[1]}: '
            f'set backbone.depth={depths[0]}, or use another checkpoint'
        )
    first_level = find_first_level(detector, checkpoint)
    sources = {key: _shift_level(key, first_level) for key in detector}
    missing = frozenset(key for key, source in sources.items() if source not in checkpoint)
    optional = frozenset(select_optional(missing)) if missing else frozenset()
    used = set(sources.values())
    mismatch = Mismatch(
        missing=tuple(key for key in detector if key in missing - optional),
        reshaped=tuple(
            key for key, source in sources.items() if checkpoint.get(source, detector[key]) != detector[key]
        ),
        unused=tuple(key for key in checkpoint if key not in used and not _is_below_level(key, first_level)),
    )
    if mismatch:
        raise InputError(mismatch.describe(sources, detector, checkpoint, arguments or {}))
    return Pairing(
        sources={key: source for key, source in sources.items() if key not in missing},
        kept=tuple(key for key in detector if key in optional),
        first_level=first_level,
    )


def find_first_level(detector: Shapes, checkpoint: Shapes) -> int:
    """Finds the level of a checkpoint's FPN that the first level of a detector's FPN corresponds to.

    An FPN has one lateral convolution per stage of the backbone that it reads, up to the last stage. If the checkpoint
    has more of them than the detector, its FPN starts at a finer stage: RetinaNet's starts at C3, which is level 1 of
    an FPN that starts at C2. The top-down path of an FPN does not depend on finer levels, so P3 to P5 are equal.

    Args:
        detector (Mapping[str, tuple[int, ...]]): Shapes of the detector's tensors.
        checkpoint (Mapping[str, tuple[int, ...]]): Shapes of the checkpoint's tensors.

    Returns:
        int: Level of the checkpoint, for equal necks 0. Always 0 for necks other than FPN.

    Raises:
        InputError: The detector has more levels than the checkpoint, or the shapes do not determine the stages.
    """
    if not (is_fpn(detector) and is_fpn(checkpoint)):
        return 0
    own, theirs = lateral_shapes(detector), lateral_shapes(checkpoint)
    surplus = len(theirs) - len(own)
    if theirs and surplus < 0 and theirs == own[-surplus:]:
        raise InputError(
            f'the FPN of the checkpoint reads {len(theirs)} stages of the backbone, that of the detector {len(own)}: '
            f'set neck.start_level to read {len(theirs)} stages, or pre-train with the neck of the detector'
        )
    if not own or surplus <= 0:
        return 0
    fitting = [first for first in range(surplus + 1) if theirs[first : first + len(own)] == own]
    if len(fitting) > 1:
        raise InputError(
            f'the FPN of the checkpoint has {len(theirs)} levels with equally shaped lateral convolutions, and it is '
            f'unknown which {len(own)} of them the detector uses: pre-train with the neck of the detector'
        )
    return fitting[0] if fitting else surplus


def is_fpn(keys: Collection[str]) -> bool:
    """Returns whether the neck consists of lateral and output convolutions only; PAFPN, for example, has others."""
    neck = [key for key in keys if key.startswith(PARTS[1])]
    return bool(neck) and all(_FPN_LEVEL.fullmatch(key) for key in neck)


def lateral_shapes(tensors: Shapes) -> list[tuple[int, ...]]:
    """Returns the shapes of the weights of an FPN's lateral convolutions by level; empty if a lower one is missing."""
    weights = {
        int(match[2]): shape
        for key, shape in tensors.items()
        if (match := _FPN_LEVEL.fullmatch(key)) and match[1] == 'lateral_convs' and match[3] == 'conv.weight'
    }
    return [weights[level] for level in range(len(weights))] if set(weights) == set(range(len(weights))) else []


def _encoder_part(tensors: Shapes) -> Shapes:
    return {key: shape for key, shape in tensors.items() if key.startswith(PARTS)}


def _shift_level(key: str, first_level: int) -> str:
    """Returns the checkpoint's key for a key of the detector."""
    match = _FPN_LEVEL.fullmatch(key)
    return f'neck.{match[1]}.{int(match[2]) + first_level}.{match[3]}' if match and first_level else key


def _is_below_level(key: str, first_level: int) -> bool:
    """Returns whether a key of the checkpoint belongs to an FPN level below the first level of the detector."""
    match = _FPN_LEVEL.fullmatch(key)
    return match is not None and int(match[2]) < first_level
