"""Where the boxes of a photo come from: a search, chance, or annotations (the paper's Table 5)."""

import cv2
import numpy as np

from ccop_mm.proposals.search import propose
from ccop_mm.proposals.select import random_bits
from ccop_mm.proposals.true_boxes import true_boxes

#: As many as selective search leaves after the size and aspect rules, in round numbers.
NUM_RANDOM = 1500


def find_boxes(image, photo, rules):
    """The boxes of one photo before any selection.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        photo (Photo): Which one.
        rules (Rules): How.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes in pixels of the image, in an order that the photo and the rules decide.

    Raises:
        BadPhoto: If its annotations do not fit.
    """
    shape = image.shape[:2]
    if rules.method == 'random':
        return random_boxes(shape, photo.image_id, rules.seed, rules.min_area, rules.max_aspect)
    if rules.method == 'ground-truth':
        return true_boxes(photo, shape)
    return search_boxes(image, rules.mode, rules.max_side, rules.engine)


def search_boxes(image, mode='fast', max_side=0, engine='native'):
    """Selective search at a limited size.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): As :func:`~ccop_mm.proposals.search.propose`.
        max_side (int): An image with a longer side is shrunk to it for the search; 0: none is.
        engine (str): As :func:`~ccop_mm.proposals.search.propose`.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes in pixels of the image, whole numbers; x2 and y2 are exclusive.
    """
    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return propose(image, mode, engine)
    scale = max_side / max(height, width)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    boxes = propose(cv2.resize(image, small, interpolation=cv2.INTER_AREA), mode, engine).astype(np.float64)
    enlarge = np.array([width / small[0], height / small[1]] * 2)
    return np.rint(boxes * enlarge).astype(np.float32)


def random_boxes(shape, image_id, seed=0, min_area=144.0, max_aspect=3.0):
    """Boxes at random places, within the paper's size and aspect rules.

    Logarithms of area and aspect ratio are uniform, from ``min_area`` to the photo and within ``max_aspect``; places
    are uniform where the box fits.

    Args:
        shape (tuple[int, int]): The photo's height and width in pixels.
        image_id (int): With ``seed``, decides all boxes.
        seed (int): See above.
        min_area (float): Smallest area before sides are rounded, in square pixels.
        max_aspect (float): Largest longer by shorter side.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes of whole pixels; n is at most :data:`NUM_RANDOM`, and 0 if none fits.
    """
    height, width = shape
    min_area = max(min_area, 1)
    if min_area > height * width:
        return np.empty((0, 4), np.float32)
    # 53 bits make a uniform float64 in [0, 1).
    draws = (random_bits(4 * NUM_RANDOM, image_id, seed, stream=1) >> 11) * 2.0**-53
    size, ratio, x, y = draws.reshape(4, NUM_RANDOM)
    area = min_area * (height * width / min_area) ** size
    aspect = min(max_aspect, height * width) ** (2 * ratio - 1)
    sides = np.rint(np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)])).clip(1)
    room = np.array([[width], [height]]) - sides
    begin = np.floor(np.stack([x, y]) * (room + 1))
    fits = (room >= 0).all(axis=0)
    return np.concatenate([begin, begin + sides])[:, fits].T.astype(np.float32)
