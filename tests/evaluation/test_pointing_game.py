import itertools
import json
import math

import numpy as np
import pytest
import torch

from ccop_mm.evaluation import (
    PointingResult,
    box_similarity,
    format_pointing_report,
    pointing_hits,
    read_pointing_result,
    write_pointing_result,
)
from ccop_mm.evaluation.pointing_game import bootstrap_interval, cells_inside
from ccop_mm.utils.errors import InputError

STRIDE = 4


def random_boxes(count, size, generator):
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * size
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def mean_feature(level, box):
    """Computes the mean of a 7x7 RoIAlign sample by sample: bilinear, and zero more than one cell outside the map."""
    height, width = level.shape[1:]
    x1, y1, x2, y2 = (side / STRIDE - 0.5 for side in box)
    counts = [math.ceil((end - start) / 7) for start, end in ((y1, y2), (x1, x2))]
    samples = []
    for bin_y, bin_x in itertools.product(range(7), repeat=2):
        for step_y, step_x in itertools.product(*map(range, counts)):
            y = y1 + (y2 - y1) / 7 * (bin_y + (step_y + 0.5) / counts[0])
            x = x1 + (x2 - x1) / 7 * (bin_x + (step_x + 0.5) / counts[1])
            if not (-1 <= y <= height and -1 <= x <= width):
                samples.append(np.zeros(len(level)))
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            top, left = int(y), int(x)
            value = 0
            for row, column in itertools.product((top, top + 1), (left, left + 1)):
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                if weight:
                    value = value + weight * level[:, row, column]
            samples.append(value)
    return np.mean(samples, axis=0)


def brute_force(query_maps, key_maps, boxes_q, boxes_k, batch_index, view_shape):
    """Computes the hits by definition, one object and one cell at a time."""
    hits = []
    for box_q, (x1, y1, x2, y2), index in zip(boxes_q, boxes_k.tolist(), batch_index.tolist(), strict=True):
        pooled = mean_feature(query_maps[index].numpy(), box_q.tolist())
        keys = key_maps[index].numpy()
        best, inside = -np.inf, []
        for row in range(keys.shape[1]):
            for column in range(keys.shape[2]):
                cell = keys[:, row, column]
                value = cell @ pooled / np.linalg.norm(cell) / np.linalg.norm(pooled)
                bounds = [(n * STRIDE, min((n + 1) * STRIDE, size)) for n, size in zip((row, column), view_shape)]  # noqa: B905
                y, x = (sum(pair) / 2 for pair in bounds)
                if value > best:
                    best, inside = value, x1 <= x < x2 and y1 <= y < y2
        hits.append(float(inside))
    return hits


@pytest.mark.parametrize('view_shape', [(24, 32), (22, 30)])
def test_matches_brute_force(view_shape, generator):
    shape = (3, 5, *(-(-side // STRIDE) for side in view_shape))
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    boxes = [random_boxes(40, 22, generator) for _ in range(2)]
    batch_index = torch.randint(3, (40,), generator=generator)
    similarity = box_similarity(*maps, boxes[0], batch_index, STRIDE)
    hits = pointing_hits(similarity, cells_inside(boxes[1], shape[2:], view_shape, STRIDE))
    assert 0 < hits.sum() < 40
    assert hits.tolist() == brute_force(*maps, *boxes, batch_index, view_shape)
    assert similarity.abs().max() <= 1 + 1e-9


def maps_with_two_objects(offset):
    """Creates maps with two objects of different features on weak noise; the key map moves both by ``offset`` rows."""
    generator = torch.Generator().manual_seed(1)
    features = torch.eye(8)[:2]
    maps, boxes = [], []
    for shift in (0, offset):
        level = 0.01 * torch.randn(1, 8, 10, 10, generator=generator)
        corners = [(1, 1), (4, 5)]
        for feature, (y, x) in zip(features, corners, strict=True):
            level[0, :, y + shift : y + shift + 3, x : x + 3] += feature[:, None, None]
        maps.append(level)
        boxes.append(torch.tensor([[x, y + shift, x + 3, y + shift + 3] for y, x in corners]) * float(STRIDE))
    return maps, boxes


def test_center_of_a_cell_at_the_edge_is_that_of_its_visible_part():
    # With 22 pixels and stride 4 the last cell covers pixels 20 to 22, so its center is 21.
    for end, expected in ((21.5, True), (20.5, False)):
        inside = cells_inside(torch.tensor([[19.0, 19.0, end, end]]), (6, 6), (22, 22), 4)
        assert inside[0, 5, 5].item() == expected and inside.sum() == expected


@pytest.mark.parametrize('offset', [0, 2])
def test_objects_are_located_and_not_confused(offset):
    maps, boxes = maps_with_two_objects(offset)
    similarity = box_similarity(*maps, boxes[0], torch.zeros(2, dtype=torch.long), STRIDE)
    inside = cells_inside(boxes[1], (10, 10), (40, 40), STRIDE)
    assert pointing_hits(similarity, inside).tolist() == [1, 1]
    assert pointing_hits(similarity, inside.flip(0)).tolist() == [0, 0]


def test_maximum_in_the_same_view_is_at_the_query():
    maps = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    cells = torch.tensor([[0, 0], [3, 5], [7, 7]])
    # Boxes of 0.1 px around a cell's center, where RoIAlign hardly interpolates with the neighbors.
    centers = (cells.flip(1) + 0.5) * STRIDE
    boxes = torch.cat([centers - 0.05, centers + 0.05], dim=1)
    similarity = box_similarity(maps, maps, boxes, torch.zeros(3, dtype=torch.long), STRIDE)
    assert similarity.flatten(1).argmax(1).tolist() == (cells[:, 0] * 8 + cells[:, 1]).tolist()
    assert similarity.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def test_constant_map_scores_the_relative_area_of_the_box():
    maps = torch.ones(1, 4, 10, 10)
    boxes = torch.tensor([[0.0, 0, 20, 20], [8, 8, 40, 16]])
    similarity = box_similarity(maps, maps, boxes, torch.zeros(2, dtype=torch.long), STRIDE)
    hits = pointing_hits(similarity, cells_inside(boxes, (10, 10), (40, 40), STRIDE))
    assert hits.tolist() == pytest.approx([0.25, 0.16])
    zero = box_similarity(maps * 0, maps * 0, boxes, torch.zeros(2, dtype=torch.long), STRIDE)
    assert zero.abs().max() == 0


def test_no_objects_and_non_finite_features():
    maps = torch.ones(1, 4, 10, 10)
    similarity = box_similarity(maps, maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), STRIDE)
    assert similarity.shape == (0, 10, 10)
    assert pointing_hits(similarity, similarity.bool()).shape == (0,)
    similarity = torch.zeros(3, 2, 2)
    similarity[1, 0, 1] = torch.nan
    with pytest.raises(InputError, match='1 of 3'):
        pointing_hits(similarity, similarity == 0)


def test_interval_weights_groups_by_their_size():
    # With two groups of 1 and 99 members, half of the resamples contain both, and their mean is the overall mean.
    values, groups = np.append(np.zeros(1), np.ones(99)), np.append(0, np.full(99, 7))
    assert bootstrap_interval(values, groups, confidence=0.4) == (0.99, 0.99)


@pytest.mark.parametrize('confidence, deviations', [(0.95, 1.96), (0.8, 1.282)])
def test_interval_of_single_member_groups_matches_the_normal_interval(confidence, deviations):
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, np.arange(400), confidence, num_resamples=20_000)
    expected = deviations * values.std() / 20
    assert (values.mean() - low, high - values.mean()) == pytest.approx((expected, expected), rel=0.05)


def test_interval_has_the_nominal_coverage():
    # The objects of an image, 1 to 4 in each of 60 images, have equal scores: an interval over objects is too narrow.
    rng = np.random.default_rng(0)
    num_covered, total_width = 0, 0.0
    for seed in range(200):
        groups = np.repeat(np.arange(60), rng.integers(1, 5, 60))
        values = (rng.random(60) < 0.3).astype(float)[groups]
        low, high = bootstrap_interval(values, groups, num_resamples=300, seed=seed)
        num_covered += low <= 0.3 <= high
        total_width += high - low
    assert 0.88 <= num_covered / 200 <= 0.99
    assert total_width / 200 > 2 * 1.96 * np.sqrt(0.3 * 0.7 / 150) * 1.2  # width for 150 independent objects


def result(seed=0, gain=0.0, count=50):
    rng = np.random.default_rng(seed)
    base = rng.random(count)
    return PointingResult(
        hits={'C4': (base < 0.4 + gain).astype(float), 'P2': (base < 0.2).astype(float)},
        area_fraction=rng.random(count) * 0.4,
        center=(rng.random(count) < 0.5).astype(float),
        image_index=np.arange(count) // 2,
        object_index=np.zeros(count, np.int64),
    )


def test_report_and_table():
    one = result()
    report = one.report()
    assert (report['num_queries'], report['num_objects'], report['num_images']) == (50, 25, 25)
    assert report['chance'] == pytest.approx(one.area_fraction.mean())
    assert report['center'] == pytest.approx(one.center.mean())
    assert report['C4'] == pytest.approx(one.hits['C4'].mean())
    assert (report['P2_low'], report['P2_high']) == bootstrap_interval(one.hits['P2'], one.image_index)
    rows = [line.split() for line in format_pointing_report(report).splitlines()]
    assert rows[2][:2] == ['C4', f'{100 * report["C4"]:.1f}']
    assert rows[4][:2] == ['chance', f'{100 * report["chance"]:.1f}']


def test_difference_is_paired():
    better, worse = result(gain=0.2), result()
    gain, low, high = better.difference(worse, 'C4')
    assert gain == pytest.approx((better.hits['C4'] - worse.hits['C4']).mean())
    assert low <= gain <= high
    unpaired_width = better.report()['C4_high'] - better.report()['C4_low']
    assert high - low < 0.9 * unpaired_width
    assert worse.difference(worse, 'C4') == (0, 0, 0)
    with pytest.raises(InputError, match='cannot be compared'):
        better.difference(result(seed=1), 'C4')


def test_file(tmp_path):
    one = result()
    write_pointing_result(one, tmp_path / 'a.json')
    again = read_pointing_result(tmp_path / 'a.json')
    content = json.loads((tmp_path / 'a.json').read_text())
    assert again.report() == one.report() == content['report']
    # Files of earlier versions must remain readable.
    assert set(content['objects']) == {'share', 'center', 'photo', 'row', 'hits'}
    assert content['objects']['photo'] == one.image_index.tolist()
    (tmp_path / 'b.json').write_text('{"report": 1}')
    with pytest.raises(InputError, match='b.json'):
        read_pointing_result(tmp_path / 'b.json')
    with pytest.raises(InputError, match='c.json'):
        read_pointing_result(tmp_path / 'c.json')
