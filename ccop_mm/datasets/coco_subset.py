"""A seeded part of a COCO json, such as the 10 % of train2017 that the paper's Table 2 trains on."""

import hashlib
import json
from pathlib import Path

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write


def choose(image_ids, percent, seed):
    """A random part of the images, the same on every machine and for any order of the file.

    The images are ranked by a hash of seed and id, and the first are taken: so the order plays no part, no library's
    generator does, and a smaller part of one seed lies within every larger one.

    Args:
        image_ids (Iterable[int | str]): Distinct ids.
        percent (float): Above 0, at most 100; the number of images is rounded to the nearest, and at least 1.
        seed (int): Another seed chooses another part.

    Returns:
        set[int | str]: The chosen ids.
    """

    def rank(image_id):
        return hashlib.blake2b(f'{seed} {image_id}'.encode(), digest_size=16).digest()

    ranked = sorted(image_ids, key=rank)
    return set(ranked[: max(1, round(len(ranked) * percent / 100))])


def write_subset(source, out, percent, seed=0):
    """Writes the chosen images of a COCO json with their annotations; categories and everything else stay.

    Args:
        source (str | Path): COCO json with annotations.
        out (str | Path): The file to write.
        percent (float): See :func:`choose`.
        seed (int): See :func:`choose`.

    Returns:
        tuple[int, int]: Number of images and of annotations written.

    Raises:
        InputError: ``source`` is absent or no COCO json, ``percent`` is out of range, or ``out`` is ``source``.
    """
    if not 0 < percent <= 100:
        raise InputError(f'{percent} % of the images: the percentage must be above 0 and at most 100')
    if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
        raise InputError(f'{out} is the file itself: name another one to write')
    try:
        content = json.loads(Path(source).read_text())
        image_ids = [image['id'] for image in content['images']]
        annotated = [one['image_id'] for one in content['annotations']]
    except FileNotFoundError as error:
        raise InputError(f'{source} does not exist: name an instances_*.json of COCO') from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{source} is no COCO json with images and annotations ({error!r})') from error
    if not image_ids:
        raise InputError(f'{source} lists no images')
    kept = choose(image_ids, percent, seed)
    content['images'] = [
        image for image, image_id in zip(content['images'], image_ids, strict=True) if image_id in kept
    ]
    content['annotations'] = [
        one for one, image_id in zip(content['annotations'], annotated, strict=True) if image_id in kept
    ]
    with atomic_write(out, 'w') as file:
        json.dump(content, file)
    return len(content['images']), len(content['annotations'])
