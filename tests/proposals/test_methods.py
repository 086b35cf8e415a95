"""Where boxes come from."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import Photo, propose
from ccop_mm.proposals.methods import NUM_RANDOM, find_boxes, random_boxes, search_boxes
from ccop_mm.proposals.rules import Rules
from ccop_mm.proposals.true_boxes import AnnotatedPhoto

PHOTO = Photo(5, 'x.png', Path('x.png'))
RANDOM_OF_139 = [[290, 253, 326, 275], [323, 95, 454, 162], [314, 62, 456, 159]]


def test_search_of_a_photo_within_the_limit_is_opencv_s(scene):
    image = scene(1)
    for max_side in (0, 96, 1000):
        np.testing.assert_array_equal(search_boxes(image, 'fast', max_side), propose(image))
    assert find_boxes(image, PHOTO, Rules(mode='single')).tolist() == propose(image, 'single').tolist()


def test_larger_photos_are_searched_small_and_their_boxes_enlarged(scene):
    image = scene(2, 150, 400)
    small = cv2.resize(image, (100, 38), interpolation=cv2.INTER_AREA)  # 150 * 0.25 = 37.5
    expected = [[round(v * s) for v, s in zip(box, (4, 150 / 38) * 2, strict=True)] for box in propose(small).tolist()]
    boxes = search_boxes(image, 'fast', 100)
    assert boxes.tolist() == expected
    assert [0, 0, 400, 150] in boxes.tolist()
    assert find_boxes(image, PHOTO, Rules(max_side=100)).tolist() == expected


def test_extremely_long_photos(scene):
    image = np.repeat(scene(3)[:1], 130, axis=1)  # 1 x 12,480
    boxes = search_boxes(image, 'fast', 1024)
    assert boxes.min() >= 0 and boxes[:, 2].max() == 12480 and boxes[:, 3].max() == 1


@pytest.mark.parametrize('shape', [(480, 640), (30, 500), (12, 12)])
def test_random_boxes_lie_inside_and_obey_the_rules(shape):
    boxes = random_boxes(shape, 7)
    height, width = shape
    assert boxes.dtype == np.float32 and (boxes == np.floor(boxes)).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 1
    if shape == (480, 640):
        assert NUM_RANDOM / 2 < len(boxes) <= NUM_RANDOM
        # Rounding of the sides moves a few beyond the limits; the selection drops them.
        area, aspect = sides.prod(axis=1), sides.max(axis=1) / sides.min(axis=1)
        assert np.mean((area >= 144) & (aspect < 3)) > 0.95


def test_random_boxes_are_decided_by_photo_and_seed_alone():
    assert random_boxes((48, 64), 7).tolist() == random_boxes((48, 64), 7).tolist()
    others = [random_boxes((48, 64), 8), random_boxes((48, 64), 7, seed=1)]
    assert all(other.tolist() != random_boxes((48, 64), 7).tolist() for other in others)
    # For good: of PCG64's stream, which numpy keeps stable.
    assert random_boxes((480, 640), 139)[:3].astype(int).tolist() == RANDOM_OF_139


def test_random_boxes_have_uniform_places_and_log_sizes():
    """Against a plain draw of the same distribution, by the quantiles of sides and of places."""
    rng = np.random.default_rng(0)
    plain = []
    while len(plain) < 20000:
        area = 144 * (480 * 640 / 144) ** rng.random()
        aspect = 3 ** rng.uniform(-1, 1)
        w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if w <= 640 and h <= 480:
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            plain.append((x, y, x + w, y + h))
    ours = np.concatenate([random_boxes((480, 640), image_id) for image_id in range(20)])
    assert len(ours) > 20000
    for column in range(4):
        for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
            expected = np.quantile(np.array(plain)[:, column], quantile)
            assert abs(np.quantile(ours[:, column], quantile) - expected) < 8, (column, quantile)


def test_photos_too_small_for_any_random_box():
    assert random_boxes((11, 13), 1).shape == (0, 4)
    assert find_boxes(np.zeros((5, 5, 3), np.uint8), PHOTO, Rules.of('random')).shape == (0, 4)


def test_ground_truth_comes_from_the_photo():
    photo = AnnotatedPhoto(5, 'x.png', Path('x.png'), np.array([[1.5, 2, 20, 90]]), (40, 30))
    boxes = find_boxes(np.zeros((40, 30, 3), np.uint8), photo, Rules.of('ground-truth'))
    assert boxes.tolist() == [[1.5, 2, 20, 40]]
