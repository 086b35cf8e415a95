"""Selection of proposals from candidate boxes: the paper's filters and merging, and an unbiased random sample."""

import numpy as np

from ccop_mm.proposals.settings import MERGES


def filter_boxes(boxes: np.ndarray, min_area: float = 144, max_aspect: float = 3.0) -> np.ndarray:
    """Removes boxes that are too small or too elongated.

    Args:
        boxes (np.ndarray): (n, 4) xyxy boxes in pixels.
        min_area (float): Smallest area kept, in square pixels. The paper removes "area < 12^2".
        max_aspect (float): Boxes are removed if the longer side is at least this many times the shorter side. The paper
            removes aspect ratios "outside (1/3, 3)", an open interval.

    Returns:
        np.ndarray: (m, 4), the remaining boxes in their original order.
    """
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]  # (n, 2) width, height
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    return boxes[(shorter * longer >= min_area) & (longer < max_aspect * shorter)]


def merge_boxes(
    boxes: np.ndarray, max_iou: float = 0.5, rule: str = 'largest', image_id: int = 0, seed: int = 0
) -> np.ndarray:
    """Merges boxes with an IoU above ``max_iou``.

    The paper only states that boxes with IoU > 0.5 are "merged". The default rule is non-maximum suppression by area:
    the largest remaining box suppresses all smaller boxes whose IoU with it exceeds ``max_iou``, and so on; equal areas
    are ordered by coordinates. The result therefore does not depend on the order of the boxes, every result is a box
    that the search found, and no two results overlap by more than ``max_iou``. Averages of the merged boxes have
    neither of the last two properties. The authors' code suppresses in random order.

    On 31 COCO images (fast mode, 1,566 boxes per image, 386 objects) the rules give similar results:

    ====================  ===============  =============  =============  =================
    rule                  boxes per image  recall at 0.5  recall at 0.7  mean best overlap
    ====================  ===============  =============  =============  =================
    largest               518              0.55           0.25           0.51
    smallest              535              0.57           0.20           0.50
    random                498              0.55           0.20           0.50
    mean of random group  497              0.55           0.23           0.51
    ====================  ===============  =============  =============  =================

    Args:
        boxes (np.ndarray): (n, 4) xyxy boxes in pixels, each with a positive area.
        max_iou (float): Largest IoU of two results, in (0, 1].
        rule (str): ``'largest'``: as described above. ``'smallest'``: the smallest box first. ``'random'``: in an order
            that the image id and the seed determine. ``'average'``: each result of ``'largest'`` is replaced by the
            mean of itself and the boxes it suppressed. ``'none'``: nothing is merged.
        image_id (int): Image id, for ``'random'``.
        seed (int): Random seed, for ``'random'``.

    Returns:
        np.ndarray: (m, 4), the merged boxes in the order in which they were selected; for ``'none'`` the input.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule not in MERGES:
        raise ValueError(f'unknown merge rule {rule!r}: choose one of {", ".join(MERGES)}')
    if rule == 'none' or not len(boxes):
        return boxes
    x1, y1, x2, y2 = boxes.T.astype(np.float64)
    areas = (x2 - x1) * (y2 - y1)
    order = np.lexsort((y2, x2, y1, x1, areas if rule == 'smallest' else -areas))
    if rule == 'random':
        order = order[np.argsort(random_bits(len(boxes), image_id, seed, stream=2), kind='stable')]
    x1, y1, x2, y2, areas = (values[order] for values in (x1, y1, x2, y2, areas))
    ends = _search_ends(areas, max_iou, rule)
    alive = np.ones(len(boxes), dtype=bool)
    leader = np.arange(len(boxes))
    for i, end in enumerate(ends.tolist()):
        if not alive[i]:
            continue
        rest = slice(i + 1, end)
        width = np.minimum(x2[rest], x2[i]) - np.maximum(x1[rest], x1[i])
        height = np.minimum(y2[rest], y2[i]) - np.maximum(y1[rest], y1[i])
        overlap = width.clip(min=0) * height.clip(min=0)
        # overlap / union > max_iou without a division: comparisons are exact for whole pixels.
        merged = overlap > max_iou * (areas[rest] + areas[i] - overlap)
        leader[rest][merged & alive[rest]] = i
        alive[rest] &= ~merged
    if rule == 'average':
        return _average_groups(boxes[order], leader, alive)
    return boxes[order[alive]]


def _search_ends(areas: np.ndarray, max_iou: float, rule: str) -> np.ndarray:
    """Returns for each sorted box the (n,) index behind the last box that can exceed ``max_iou`` with it.

    The IoU of two boxes is at most the ratio of their areas.
    """
    if rule == 'random':
        return np.full(len(areas), len(areas))
    if rule == 'smallest':
        return np.searchsorted(areas, areas / max_iou, side='right')
    return np.searchsorted(-areas, -max_iou * areas)


def _average_groups(boxes: np.ndarray, leader: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Averages the boxes (n, 4) that share a leader; returns (m, 4), one for each box that is its own leader."""
    sums = np.zeros(boxes.shape)
    np.add.at(sums, leader, boxes.astype(np.float64))
    counts = np.bincount(leader, minlength=len(boxes))
    return (sums[alive] / counts[alive, None]).astype(boxes.dtype)


def sample_boxes(boxes: np.ndarray, max_boxes: int, image_id: int, seed: int = 0) -> np.ndarray:
    """Samples at most ``max_boxes`` boxes, in a random order that the image id and the seed determine.

    Any prefix of the result is an unbiased sample of the boxes, unlike the first boxes of a search or of a merge. A
    smaller ``max_boxes`` returns a prefix of the result for a larger one.

    Args:
        boxes (np.ndarray): (n, 4) boxes, in an order that depends on the boxes only.
        max_boxes (int): Number of boxes to keep.
        image_id (int): Image id, at least 0.
        seed (int): Random seed, at least 0.

    Returns:
        np.ndarray: (min(n, max_boxes), 4).
    """
    return boxes[np.argsort(random_bits(len(boxes), image_id, seed), kind='stable')[:max_boxes]]


def random_bits(count: int, image_id: int, seed: int = 0, stream: int = 0) -> np.ndarray:
    """Generates random 64-bit numbers that depend on the arguments only.

    Args:
        count (int): Number of random numbers.
        image_id (int): Image id, from 0 to 2^64 - 1.
        seed (int): Random seed, from 0 to 2^32 - 1.
        stream (int): Distinguishes independent uses for the same image.

    Returns:
        np.ndarray: (count,) uint64.
    """
    # numpy guarantees a stable stream for a bit generator, but not for the distributions derived from it.
    return np.random.PCG64(image_id | seed << 64 | stream << 96).random_raw(count)
