"""Which of the searched boxes become proposals: the paper's rules, and a fair sample of what they leave."""

import numpy as np

#: Rules of :func:`merge_boxes`.
MERGES = ('largest', 'smallest', 'random', 'average', 'none')


def filter_boxes(boxes, min_area=144, max_aspect=3.0):
    """Drops boxes that are too small or too long.

    Args:
        boxes (np.ndarray): (n, 4) xyxy boxes in pixels.
        min_area (float): Smallest area kept, in square pixels. The paper drops "area < 12^2".
        max_aspect (float): Boxes whose longer side is this many times the shorter one, or more, go. The paper drops
            aspect ratios "outside (1/3, 3)", an open interval.

    Returns:
        np.ndarray: (m, 4), the remaining boxes in their order.
    """
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]  # (n, 4) -> (n, 2) width, height
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    return boxes[(shorter * longer >= min_area) & (longer < max_aspect * shorter)]


def merge_boxes(boxes, max_iou=0.5, rule='largest', image_id=0, seed=0):
    """Merges boxes that overlap by more than ``max_iou``.

    The paper says only that boxes with IoU > 0.5 are "merged". By default the largest box not yet merged takes in
    every smaller one that overlaps it by more than ``max_iou``, and so on downwards; equal areas go by coordinates. So
    the result does not depend on the order of the boxes, every result is a box that the search found, and no two
    results overlap by more than ``max_iou``. Averages of the merged boxes have neither of the last two properties, and
    random order, the released code's, is no rule at all. On 31 COCO photos (fast mode, 1,566 boxes a photo, 386
    objects) the choice matters little: this leaves 518 boxes a photo with recall 0.55 at IoU 0.5, 0.25 at IoU 0.7
    and mean best overlap 0.51; random order 498, 0.55, 0.20, 0.50; the smallest first 535, 0.57, 0.20, 0.50; the
    average of each random-order group 497, 0.55, 0.23, 0.51.

    Args:
        boxes (np.ndarray): (n, 4) xyxy boxes in pixels, each with a positive area.
        max_iou (float): Largest overlap that two results may have, in (0, 1].
        rule (str): ``'largest'``: as above. ``'smallest'``: the smallest first. ``'random'``: in an order that the
            photo and the seed decide. ``'average'``: each result of ``'largest'`` becomes the mean of the boxes merged
            into it and itself. ``'none'``: nothing is merged.
        image_id (int): Of the photo; for ``'random'``.
        seed (int): For ``'random'``.

    Returns:
        np.ndarray: (m, 4), the merged boxes, in the order in which they were taken; ``'none'``: the boxes as they are.

    Raises:
        ValueError: If the rule is none of these.
    """
    if rule not in MERGES:
        raise ValueError(f'merge rule {rule!r} is none of {", ".join(MERGES)}')
    if rule == 'none' or not len(boxes):
        return boxes
    x1, y1, x2, y2 = boxes.T.astype(np.float64)
    areas = (x2 - x1) * (y2 - y1)
    order = np.lexsort((y2, x2, y1, x1, areas if rule == 'smallest' else -areas))
    if rule == 'random':
        order = order[np.argsort(random_bits(len(boxes), image_id, seed, stream=2), kind='stable')]
    x1, y1, x2, y2, areas = (values[order] for values in (x1, y1, x2, y2, areas))
    ends = _ends(areas, max_iou, rule)
    alive = np.ones(len(boxes), dtype=bool)
    leader = np.arange(len(boxes))
    for i, end in enumerate(ends.tolist()):
        if not alive[i]:
            continue
        rest = slice(i + 1, end)
        width = np.minimum(x2[rest], x2[i]) - np.maximum(x1[rest], x1[i])
        height = np.minimum(y2[rest], y2[i]) - np.maximum(y1[rest], y1[i])
        overlap = width.clip(min=0) * height.clip(min=0)
        # overlap / union > max_iou without the division, so that whole pixels give exact comparisons.
        merged = overlap > max_iou * (areas[rest] + areas[i] - overlap)
        leader[rest][merged & alive[rest]] = i
        alive[rest] &= ~merged
    if rule == 'average':
        return _average(boxes[order], leader, alive)
    return boxes[order[alive]]


def _ends(areas, max_iou, rule):
    """(n,) where each box's search for overlapping ones ends: IoU is at most the ratio of the areas."""
    if rule == 'random':
        return np.full(len(areas), len(areas))
    if rule == 'smallest':
        return np.searchsorted(areas, areas / max_iou, side='right')
    return np.searchsorted(-areas, -max_iou * areas)


def _average(boxes, leader, alive):
    """(m, 4) the mean of the boxes (n, 4) of each leader."""
    sums = np.zeros(boxes.shape)
    np.add.at(sums, leader, boxes.astype(np.float64))
    counts = np.bincount(leader, minlength=len(boxes))
    return (sums[alive] / counts[alive, None]).astype(boxes.dtype)


def sample_boxes(boxes, max_boxes, image_id, seed=0):
    """Keeps at most ``max_boxes`` boxes, in a random order that the image id and the seed decide.

    Any prefix of the result is an unbiased sample of the boxes, which the first boxes of a search or of a merge are
    not. A smaller ``max_boxes`` gives a prefix of what a larger one gives.

    Args:
        boxes (np.ndarray): (n, 4) boxes, in an order that depends on the boxes alone.
        max_boxes (int): How many to keep.
        image_id (int): From 0 up.
        seed (int): From 0 up.

    Returns:
        np.ndarray: (min(n, max_boxes), 4).
    """
    return boxes[np.argsort(random_bits(len(boxes), image_id, seed), kind='stable')[:max_boxes]]


def random_bits(count, image_id, seed=0, stream=0):
    """Random numbers that a photo and a seed decide.

    Args:
        count (int): How many.
        image_id (int): From 0 to 2^64 - 1.
        seed (int): From 0 to 2^32 - 1.
        stream (int): Tells apart the uses of one photo's numbers.

    Returns:
        np.ndarray: (count,) uint64.
    """
    # Raw 64-bit draws, for numpy promises a stable stream of a bit generator, not of what is made from it.
    return np.random.PCG64(image_id | seed << 64 | stream << 96).random_raw(count)
