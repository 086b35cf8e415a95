"""Seeded subsets of a COCO json, such as the 10 % of train2017 in the paper's Table 2."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ccop_mm.utils.coco_json import read_json, write_subset
from ccop_mm.utils.errors import InputError

ImageId = int | str


def sample_image_ids(image_ids: Iterable[ImageId], percent: float, seed: int) -> set[ImageId]:
    """Samples a percentage of the image ids without a random number generator.

    The ids are sorted by a hash of seed and id, and the first ones are kept. The result therefore depends neither on
    the machine nor on the order of ``image_ids``, and with the same seed a smaller percentage yields a subset of a
    larger one.

    Args:
        image_ids (Iterable[int | str]): Distinct image ids.
        percent (float): Percentage of ids to keep, in (0, 100]. The count is rounded to the nearest integer and is at
            least 1.
        seed (int): Random seed of the sample.

    Returns:
        set[int | str]: The sampled ids.
    """

    def sort_key(image_id: ImageId) -> bytes:
        return hashlib.blake2b(f'{seed} {image_id}'.encode(), digest_size=16).digest()

    ranked = sorted(image_ids, key=sort_key)
    return set(ranked[: max(1, round(len(ranked) * percent / 100))])


def write_random_subset(source: str | Path, out: str | Path, percent: float, seed: int = 0) -> tuple[int, int]:
    """Writes a COCO json that contains a sample of the images and their annotations.

    All other fields, such as the categories, are copied unchanged.

    Args:
        source (str | Path): COCO json with annotations.
        out (str | Path): Output file.
        percent (float): Percentage of images to keep, see :func:`sample_image_ids`.
        seed (int): Random seed, see :func:`sample_image_ids`.

    Returns:
        tuple[int, int]: Number of images and number of annotations written.

    Raises:
        InputError: If ``source`` is missing or not a COCO json, ``percent`` is out of range, or ``out`` is ``source``.
    """
    if not 0 < percent <= 100:
        raise InputError(f'the percentage of images must be in (0, 100], got {percent}')
    if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
        raise InputError(f'the output file {out} is the input file; choose another output file')
    content = read_json(source)
    try:
        image_ids = [image['id'] for image in content['images']]
        if not image_ids:
            raise InputError(f'{source} lists no images')
        return write_subset(content, out, sample_image_ids(image_ids, percent, seed))
    except (KeyError, TypeError) as error:
        raise InputError(f'{source} is not a COCO json with images and annotations ({error!r})') from error
