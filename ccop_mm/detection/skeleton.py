"""What a data set says about its keypoints: names, left and right, skeleton, spread."""

from collections.abc import Sequence
from numbers import Real

from ccop_mm.errors import InputError


def complete_metainfo(metainfo: dict) -> dict:
    """Checks the keypoint entries of a data set's metainfo and adds what follows from them.

    Args:
        metainfo (dict): With

            - ``keypoint_names`` (sequence of str): K names in the annotations' order.
            - ``flip_pairs`` (sequence of pairs of names): what changes places in a mirror; others stay.
            - ``skeleton`` (sequence of pairs of names): the lines of a figure.
            - ``sigmas`` (float or K floats): the spread of each keypoint in object sizes, COCO's OKS constant.
            - ``keypoint_offset`` (float): what is added to the annotations' x and y to make them continuous, where
              pixel i covers [i, i + 1): 0.5 for annotations that name pixels, as COCO's, 0 for continuous ones.

    Returns:
        dict: A copy with ``sigmas`` as K floats, ``flip_indices`` (K ints: keypoint i of a mirrored object is keypoint
        ``flip_indices[i]`` of the object) and ``skeleton_links`` (pairs of ints).

    Raises:
        InputError: If a name is unknown or stands twice, or a length is wrong; it tells which entry.
    """
    names = list(metainfo['keypoint_names'])
    if len(set(names)) < len(names):
        raise InputError(f'metainfo: keypoint_names has {_twice(names)!r} twice')
    pairs = _indices('flip_pairs', metainfo, names)
    sides = [index for pair in pairs for index in pair]
    if len(set(sides)) < len(sides):
        raise InputError(f'metainfo: flip_pairs has {names[_twice(sides)]!r} twice')
    flip_indices = list(range(len(names)))
    for left, right in pairs:
        flip_indices[left], flip_indices[right] = right, left
    sigmas = metainfo['sigmas']
    sigmas = [float(sigmas)] * len(names) if isinstance(sigmas, Real) else [float(sigma) for sigma in sigmas]
    if len(sigmas) != len(names) or min(sigmas, default=1) <= 0:
        raise InputError(
            f'metainfo: sigmas has to be one number above 0, or {len(names)} of them, one for each of keypoint_names; '
            f'got {len(sigmas)}'
        )
    return dict(
        metainfo, sigmas=sigmas, flip_indices=flip_indices, skeleton_links=_indices('skeleton', metainfo, names)
    )


def _twice(items: Sequence):
    return next(item for index, item in enumerate(items) if item in items[:index])


def _indices(entry: str, metainfo: dict, names: list[str]) -> list[list[int]]:
    """Pairs of names as pairs of their places."""
    pairs = [list(pair) for pair in metainfo[entry]]
    for pair in pairs:
        unknown = [name for name in pair if name not in names]
        if len(pair) != 2 or unknown or pair[0] == pair[1]:
            raise InputError(
                f'metainfo: {entry} has {pair}, which is no pair of two of keypoint_names; with keypoints of your own '
                'set keypoint_names, flip_pairs, skeleton and sigmas together'
            )
    return [[names.index(first), names.index(second)] for first, second in pairs]
