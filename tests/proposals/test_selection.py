"""Filtering, merging and sampling, compared with plain loops over integers and fractions."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from ccop_mm.proposals.selection import filter_boxes, merge_boxes, sample_boxes


def random_boxes(rng, n, extent=60):
    """Creates whole-pixel boxes, many of them close to or equal to others."""
    top_left = rng.integers(0, extent, (n, 2))
    sides = rng.integers(1, extent, (n, 2))
    boxes = np.concatenate([top_left, top_left + sides], axis=1)
    return np.concatenate([boxes, boxes[: n // 4]]).astype(np.float32)


def plain_iou(a, b):
    """Computes the IoU as an exact fraction."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return Fraction(overlap, union)


def plain_merge(boxes, max_iou):
    """Keeps each box, largest first, unless a kept one overlaps it too much."""
    ordered = sorted(boxes, key=lambda b: (-(b[2] - b[0]) * (b[3] - b[1]), *b))
    kept = []
    for box in ordered:
        if all(plain_iou(box, other) <= max_iou for other in kept):
            kept.append(box)
    return kept


def as_ints(boxes):
    return [tuple(map(int, box)) for box in boxes]


@pytest.mark.parametrize('seed', range(3))
def test_filter_equals_plain_loop(seed):
    boxes = random_boxes(np.random.default_rng(seed), 400)
    expected = []
    for x1, y1, x2, y2 in as_ints(boxes):
        ratio = Fraction(x2 - x1, y2 - y1)
        if (x2 - x1) * (y2 - y1) >= 144 and Fraction(1, 3) < ratio < 3:
            expected.append((x1, y1, x2, y2))
    assert as_ints(filter_boxes(boxes)) == expected
    assert 0 < len(expected) < len(boxes)


def test_filter_at_the_limits():
    kept = [(0, 0, 12, 12), (0, 0, 20, 8)]
    dropped = [(0, 0, 11, 13), (0, 0, 60, 20), (0, 0, 20, 60)]
    boxes = np.array(kept + dropped, np.float32)
    assert as_ints(filter_boxes(boxes)) == kept
    assert as_ints(filter_boxes(boxes, min_area=143)) == [*kept, (0, 0, 11, 13)]
    assert as_ints(filter_boxes(boxes, max_aspect=3.01)) == [*kept, *dropped[1:]]


@pytest.mark.parametrize('max_iou', [Fraction(1, 2), Fraction(1, 4), Fraction(1)])
@pytest.mark.parametrize('seed', range(3))
def test_merge_equals_plain_loop_for_any_input_order(seed, max_iou):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 300)
    expected = plain_merge(list(dict.fromkeys(as_ints(boxes))), max_iou)
    merged = merge_boxes(np.unique(boxes, axis=0), float(max_iou))
    assert as_ints(merged) == expected
    shuffled = rng.permutation(np.unique(boxes, axis=0))
    assert as_ints(merge_boxes(shuffled, float(max_iou))) == expected


@pytest.mark.parametrize('max_iou', [0.5, 0.25])
@pytest.mark.parametrize('rule', ['smallest', 'random', 'average'])
def test_other_merge_rules_equal_plain_loops(rule, max_iou):
    boxes = np.unique(random_boxes(np.random.default_rng(4), 300), axis=0)
    ordered = sorted(as_ints(boxes), key=lambda b: (-(b[2] - b[0]) * (b[3] - b[1]), *b))
    if rule == 'smallest':
        ordered = sorted(as_ints(boxes), key=lambda b: ((b[2] - b[0]) * (b[3] - b[1]), *b))
    if rule == 'random':  # sorted by random keys
        keys = np.random.PCG64(9 + (3 << 64) + (2 << 96)).random_raw(len(boxes)).tolist()
        ordered = [box for _, box in sorted(zip(keys, ordered, strict=True))]
    groups = []
    for box in ordered:
        group = next((group for group in groups if plain_iou(group[0], box) > Fraction(max_iou)), None)
        if group is None:
            groups.append([box])
        else:
            group.append(box)
    merged = merge_boxes(np.random.default_rng(0).permutation(boxes), max_iou, rule, image_id=9, seed=3)
    if rule == 'average':
        np.testing.assert_allclose(merged, [np.mean(group, axis=0) for group in groups], rtol=1e-6)
    else:
        assert as_ints(merged) == [group[0] for group in groups]
    assert 1 < len(groups) < len(boxes)


def test_rule_none_and_unknown_rules():
    boxes = random_boxes(np.random.default_rng(0), 20)
    np.testing.assert_array_equal(merge_boxes(boxes, 0.5, 'none'), boxes)
    with pytest.raises(ValueError, match="'all'"):
        merge_boxes(boxes, 0.5, 'all')


def test_random_order_depends_on_image_and_seed():
    boxes = np.unique(random_boxes(np.random.default_rng(0), 200), axis=0)
    results = {
        str(as_ints(merge_boxes(boxes, 0.5, 'random', image_id, seed))) for image_id in (1, 2) for seed in (0, 1)
    }
    assert len(results) == 4


def test_merge_at_the_limit():
    # Half of a box has an IoU of exactly 0.5 with it, which does not exceed 0.5.
    boxes = np.array([(0, 0, 20, 20), (0, 0, 20, 10), (0, 0, 20, 11)], np.float32)
    assert as_ints(merge_boxes(boxes)) == [(0, 0, 20, 20), (0, 0, 20, 10)]


def test_empty_input():
    empty = np.empty((0, 4), np.float32)
    for result in (filter_boxes(empty), merge_boxes(empty), sample_boxes(empty, 5, 1)):
        assert result.shape == (0, 4)


def test_smaller_samples_are_prefixes_of_larger_ones():
    boxes = random_boxes(np.random.default_rng(0), 200)
    whole = sample_boxes(boxes, 1000, 7)
    assert Counter(as_ints(whole)) == Counter(as_ints(boxes))
    for count in (1, 50, 249):
        np.testing.assert_array_equal(sample_boxes(boxes, count, 7), whole[:count])
    assert as_ints(sample_boxes(boxes, 50, 8)) != as_ints(whole[:50])


def test_sample_does_not_change_between_versions():
    # numpy guarantees the stream of PCG64, so that any version generates the same store.
    boxes = np.arange(40, dtype=np.float32).reshape(10, 4)
    assert sample_boxes(boxes, 10, 139)[:, 0].astype(int).tolist() == [12, 20, 8, 28, 0, 4, 36, 24, 32, 16]


def test_sample_depends_on_image_id_and_seed():
    boxes = random_boxes(np.random.default_rng(0), 200)
    samples = {
        str(sample_boxes(boxes, 50, image_id, seed).tolist()) for image_id in (7, 8) for seed in (0, 1, 2**32 - 1)
    }
    assert len(samples) == 6
    np.testing.assert_array_equal(sample_boxes(boxes, 50, 7, 0), sample_boxes(boxes, 50, 7))


def test_prefixes_are_unbiased():
    boxes = np.arange(400, dtype=np.float32).reshape(100, 4)
    chosen = np.array([sample_boxes(boxes, 20, image_id)[:, 0] / 4 for image_id in range(1000)])
    times = np.bincount(chosen.astype(int).ravel(), minlength=100)
    # Each box is chosen 200 of 1,000 times on average, with a standard deviation of 12.6.
    assert abs(times - 200).max() < 5 * 12.6
