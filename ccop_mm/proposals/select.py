"""Which of the searched boxes become proposals: the paper's rules, and a fair sample of what they leave."""

import numpy as np


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


def merge_boxes(boxes, max_iou=0.5):
    """Merges boxes that overlap by more than ``max_iou`` into the largest of them.

    The paper says only that boxes with IoU > 0.5 are "merged". Here the largest box not yet merged takes in
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

    Returns:
        np.ndarray: (m, 4), the merged boxes, by descending area, then ascending coordinates.
    """
    x1, y1, x2, y2 = boxes.T.astype(np.float64)
    areas = (x2 - x1) * (y2 - y1)
    order = np.lexsort((y2, x2, y1, x1, -areas))
    x1, y1, x2, y2, areas = (values[order] for values in (x1, y1, x2, y2, areas))
    # IoU is at most the ratio of the areas: beyond `ends[i]` the boxes are too small to overlap box i by max_iou.
    ends = np.searchsorted(-areas, -max_iou * areas)
    alive = np.ones(len(boxes), dtype=bool)
    for i, end in enumerate(ends.tolist()):
        if not alive[i]:
            continue
        rest = slice(i + 1, end)
        width = np.minimum(x2[rest], x2[i]) - np.maximum(x1[rest], x1[i])
        height = np.minimum(y2[rest], y2[i]) - np.maximum(y1[rest], y1[i])
        overlap = width.clip(min=0) * height.clip(min=0)
        # overlap / union > max_iou without the division, so that whole pixels give exact comparisons.
        alive[rest] &= overlap <= max_iou * (areas[rest] + areas[i] - overlap)
    return boxes[order[alive]]


def sample_boxes(boxes, max_boxes, image_id):
    """Keeps at most ``max_boxes`` boxes, in a random order that the image id alone decides.

    Any prefix of the result is an unbiased sample of the boxes, which the first boxes of a search or of a merge are
    not. A smaller ``max_boxes`` gives a prefix of what a larger one gives.

    Args:
        boxes (np.ndarray): (n, 4) boxes, in an order that depends on the boxes alone.
        max_boxes (int): How many to keep.
        image_id (int): Seed, not negative.

    Returns:
        np.ndarray: (min(n, max_boxes), 4).
    """
    # Raw 64-bit draws and a sort, for numpy promises a stable stream of a bit generator, not of `permutation`.
    keys = np.random.PCG64(image_id).random_raw(len(boxes))
    return boxes[np.argsort(keys, kind='stable')[:max_boxes]]
