"""Which labeled images a run is trained on: nested subsets, and a selection split that learning rates are chosen on."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ccop_mm.utils.errors import InputError

#: Fraction of the training images in the selection split, and its largest number of images.
SELECTION_FRACTION, MAX_SELECTION = 0.2, 1000
#: Fewest training images: fewer would give a selection split of a single image.
MIN_IMAGES = 10


@dataclass(frozen=True)
class Share:
    """A part of the training images.

    Args:
        num_images (int): Number of images.
        percent (float): The same in percent of all training images.
    """

    num_images: int
    percent: float

    def __str__(self) -> str:
        return f'{self.num_images} images ({self.percent:.3g} %)'


def choose_shares(total: int, percents: Sequence[float], counts: Sequence[int] = ()) -> list[Share]:
    """Converts shares in percent, or numbers of images, to shares of the training images, in the same order.

    Args:
        total (int): Number of training images.
        percents (Sequence[float]): Shares in percent; each contains at least one image.
        counts (Sequence[int]): Numbers of images, which replace ``percents``.

    Raises:
        InputError: A value is out of range, or two values give the same number of images.
    """
    for percent in () if counts else percents:
        if not 0 < percent <= 100:
            raise InputError(f'a share must be above 0 and at most 100 percent, got {percent:g}')
    for count in counts:
        if not 1 <= count <= total:
            raise InputError(
                f'a number of images must be from 1 to {total}, the number of training images, got {count}'
            )
    numbers = [int(count) for count in counts] or [max(1, round(total * percent / 100)) for percent in percents]
    repeated = [number for number in numbers if numbers.count(number) > 1]
    if not numbers or repeated:
        what = f'two shares are {repeated[0]} of {total} images' if repeated else 'there is no share'
        raise InputError(f'{what}: pass different shares')
    return [Share(number, 100 * number / total) for number in numbers]


def select_subset(image_ids: Collection[int], count: int, seed: int, excluded: Collection[int] = ()) -> list[int]:
    """Returns the first images of a random order.

    The order depends on the seed and on ``image_ids``, but not on their order, ``count`` or ``excluded``. Therefore a
    larger subset contains each smaller one of the same seed. Classes are not balanced.

    Args:
        image_ids (Collection[int]): Ids of all training images.
        count (int): Number of images; fewer are returned if fewer are left.
        seed (int): Random seed.
        excluded (Collection[int]): Images to leave out.
    """
    order = sorted(image_ids)
    random.Random(f'subset {seed}').shuffle(order)
    left_out = set(excluded)
    return [image_id for image_id in order if image_id not in left_out][:count]


def selection_split(image_ids: Collection[int]) -> list[int]:
    """Returns the images that learning rates are chosen on: a fixed random fifth, at most 1,000.

    Args:
        image_ids (Collection[int]): Ids of all training images.

    Raises:
        InputError: There are fewer than :data:`MIN_IMAGES` training images.
    """
    if len(image_ids) < MIN_IMAGES:
        raise InputError(
            f'there are {len(image_ids)} training images, and at least {MIN_IMAGES} are required: label more images'
        )
    order = sorted(image_ids)
    random.Random('selection').shuffle(order)
    return order[: min(round(SELECTION_FRACTION * len(order)), MAX_SELECTION)]
