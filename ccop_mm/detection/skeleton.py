"""Keypoint entries of a dataset's metainfo: names, left-right pairs, skeleton and OKS sigmas."""

from collections.abc import Sequence
from numbers import Real
from typing import TypeVar

from ccop_mm.utils.errors import InputError

_Item = TypeVar('_Item')


def complete_metainfo(metainfo: dict) -> dict:
    """Validates the keypoint entries of a dataset's metainfo and derives indices from names.

    Args:
        metainfo (dict): Metainfo with the entries

            - ``keypoint_names`` (sequence of str): K names in the order of the annotations.
            - ``flip_pairs`` (sequence of pairs of names): Keypoints that are swapped in a mirrored image.
            - ``skeleton`` (sequence of pairs of names): Links drawn in figures.
            - ``sigmas`` (float or K floats): COCO's OKS constants, the standard deviation of the annotations of each
              keypoint relative to the object size.
            - ``keypoint_offset`` (float): Offset that converts annotated x and y to continuous coordinates, in which
              pixel i covers [i, i + 1): 0.5 for pixel indices, as in COCO, or 0 for continuous annotations.

    Returns:
        dict: A copy with ``sigmas`` as K floats, ``flip_indices`` (K ints: keypoint i of a mirrored object is keypoint
        ``flip_indices[i]`` of the object) and ``skeleton_links`` (pairs of ints).

    Raises:
        InputError: If a name is unknown or duplicated, or an entry has the wrong length.
    """
    names = list(metainfo['keypoint_names'])
    if len(set(names)) < len(names):
        raise InputError(f'metainfo.keypoint_names contains {_first_duplicate(names)!r} twice: names must be unique')
    pairs = _index_pairs('flip_pairs', metainfo, names)
    paired = [index for pair in pairs for index in pair]
    if len(set(paired)) < len(paired):
        raise InputError(
            f'metainfo.flip_pairs contains {names[_first_duplicate(paired)]!r} twice: a keypoint can be in one pair '
            'only'
        )
    flip_indices = list(range(len(names)))
    for left, right in pairs:
        flip_indices[left], flip_indices[right] = right, left
    sigmas = metainfo['sigmas']
    sigmas = [float(sigmas)] * len(names) if isinstance(sigmas, Real) else [float(sigma) for sigma in sigmas]
    if len(sigmas) != len(names) or min(sigmas, default=1) <= 0:
        raise InputError(
            f'metainfo.sigmas must be a positive number or {len(names)} positive numbers, one for each of '
            f'keypoint_names, got {metainfo["sigmas"]!r}'
        )
    return dict(
        metainfo, sigmas=sigmas, flip_indices=flip_indices, skeleton_links=_index_pairs('skeleton', metainfo, names)
    )


def _first_duplicate(items: Sequence[_Item]) -> _Item:
    """Returns the first item that equals an earlier one."""
    return next(item for index, item in enumerate(items) if item in items[:index])


def _index_pairs(entry: str, metainfo: dict, names: list[str]) -> list[list[int]]:
    """Converts pairs of keypoint names in ``metainfo[entry]`` to pairs of indices."""
    pairs = [list(pair) for pair in metainfo[entry]]
    for pair in pairs:
        unknown = [name for name in pair if name not in names]
        if len(pair) != 2 or unknown or pair[0] == pair[1]:
            raise InputError(
                f'metainfo.{entry} contains {pair}, which is not a pair of two different names of keypoint_names: for '
                'a custom skeleton set keypoint_names, flip_pairs, skeleton and sigmas together'
            )
    return [[names.index(first), names.index(second)] for first, second in pairs]
