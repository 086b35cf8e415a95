"""Candidate boxes of one image: selective search by both engines, random boxes and ground truth."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ImageFile, propose
from ccop_mm.proposals.candidates import NUM_RANDOM, find_candidates, random_boxes
from ccop_mm.proposals.ground_truth import AnnotatedImageFile
from ccop_mm.proposals.settings import ENGINES, ProposalSettings
from ccop_mm.utils.errors import InputError

IMAGE_FILE = ImageFile(5, 'x.png', Path('x.png'))


def opencv_boxes(image, mode):
    """Calls OpenCV directly and returns its distinct boxes as a set of tuples."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if mode == 'fast':
        search.switchToSelectiveSearchFast(150, 150, 0.8)
    elif mode == 'quality':
        search.switchToSelectiveSearchQuality(150, 150, 0.8)
    else:
        search.switchToSingleStrategy(200, 0.8)
    return {(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in search.process()}


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('mode', ['fast', 'quality', 'single'])
def test_selective_search_returns_opencv_s_distinct_boxes_in_ascending_order(scene, mode, engine):
    image = scene(3)
    boxes = propose(image, mode, engine)
    assert boxes.dtype == np.float32
    # A sorted list of a set: the same boxes, distinct and in ascending order.
    assert [tuple(box) for box in boxes.tolist()] == sorted(opencv_boxes(image, mode))
    assert [0, 0, 96, 72] in boxes.tolist()


def test_order_does_not_depend_on_the_random_numbers_of_opencv(scene):
    image = scene(4)
    first = propose(image, engine='opencv')
    propose(scene(5), engine='opencv')  # advances rand()
    np.testing.assert_array_equal(first, propose(image, engine='opencv'))


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_images_give_boxes_inside_the_image(shape, engine):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    boxes = propose(image, engine=engine)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= shape[1]
    assert boxes[:, 3].max() <= shape[0]


def test_missing_ximgproc_is_reported_with_the_fix(monkeypatch, scene):
    monkeypatch.delattr(cv2, 'ximgproc')
    with pytest.raises(InputError, match=r'opencv-contrib-python.*ccop_mm\.doctor') as caught:
        propose(scene(0), engine='opencv')
    assert '\n' not in str(caught.value)
    assert len(propose(scene(0)))  # the native engine does not need it


def test_unknown_modes_and_engines_and_invalid_images_are_rejected(scene):
    with pytest.raises(InputError, match="'slow'.* fast, quality, single"):
        propose(scene(0), 'slow')
    with pytest.raises(InputError, match="'gpu'.* native, opencv"):
        propose(scene(0), engine='gpu')
    for image in (scene(0)[..., 0], scene(0).astype(np.float32)):
        with pytest.raises(ValueError, match='uint8'):
            propose(image)


def test_image_within_the_size_limit_is_not_resized(scene):
    image = scene(1)
    for max_side in (96, 1000):
        np.testing.assert_array_equal(propose(image, max_side=max_side), propose(image))
    found = find_candidates(image, IMAGE_FILE, ProposalSettings(mode='single'))
    assert found.tolist() == propose(image, 'single').tolist()


def test_larger_images_are_searched_resized_and_their_boxes_scaled_back(scene):
    image = scene(2, 150, 400)
    small = cv2.resize(image, (100, 38), interpolation=cv2.INTER_AREA)  # 150 * 0.25 = 37.5
    expected = [[round(v * s) for v, s in zip(box, (4, 150 / 38) * 2, strict=True)] for box in propose(small).tolist()]
    boxes = propose(image, max_side=100)
    assert boxes.tolist() == expected
    assert [0, 0, 400, 150] in boxes.tolist()
    assert find_candidates(image, IMAGE_FILE, ProposalSettings(max_side=100)).tolist() == expected


def test_extremely_wide_images_are_searched_resized(scene):
    image = np.repeat(scene(3)[:1], 130, axis=1)  # 1 x 12,480
    boxes = propose(image, max_side=1024)
    assert boxes.min() >= 0 and boxes[:, 2].max() == 12480 and boxes[:, 3].max() == 1


@pytest.mark.parametrize('shape', [(480, 640), (30, 500), (12, 12)])
def test_random_boxes_are_inside_the_image_and_within_the_limits(shape):
    boxes = random_boxes(shape, 7)
    height, width = shape
    assert boxes.dtype == np.float32 and (boxes == np.floor(boxes)).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 1
    if shape == (480, 640):
        assert NUM_RANDOM / 2 < len(boxes) <= NUM_RANDOM
        # Rounding of the sides moves a few beyond the limits; the filter removes them.
        area, aspect = sides.prod(axis=1), sides.max(axis=1) / sides.min(axis=1)
        assert np.mean((area >= 144) & (aspect < 3)) > 0.95


def test_random_boxes_depend_on_image_id_and_seed_only():
    assert random_boxes((48, 64), 7).tolist() == random_boxes((48, 64), 7).tolist()
    others = [random_boxes((48, 64), 8), random_boxes((48, 64), 7, seed=1)]
    assert all(other.tolist() != random_boxes((48, 64), 7).tolist() for other in others)
    # numpy guarantees the stream of PCG64, so that any version generates the same boxes.
    expected = [[290, 253, 326, 275], [323, 95, 454, 162], [314, 62, 456, 159]]
    assert random_boxes((480, 640), 139)[:3].astype(int).tolist() == expected


def test_random_boxes_have_uniform_positions_and_log_uniform_sizes():
    """Compares the quantiles of the coordinates with rejection sampling from the same distribution."""
    rng = np.random.default_rng(0)
    reference = []
    while len(reference) < 20000:
        area = 144 * (480 * 640 / 144) ** rng.random()
        aspect = 3 ** rng.uniform(-1, 1)
        w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if w <= 640 and h <= 480:
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            reference.append((x, y, x + w, y + h))
    boxes = np.concatenate([random_boxes((480, 640), image_id) for image_id in range(20)])
    assert len(boxes) > 20000
    for column in range(4):
        for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
            expected = np.quantile(np.array(reference)[:, column], quantile)
            assert abs(np.quantile(boxes[:, column], quantile) - expected) < 8, (column, quantile)


def test_images_smaller_than_the_minimum_area_have_no_random_boxes():
    assert random_boxes((11, 13), 1).shape == (0, 4)
    settings = ProposalSettings.from_kwargs('random')
    assert find_candidates(np.zeros((5, 5, 3), np.uint8), IMAGE_FILE, settings).shape == (0, 4)


def test_ground_truth_candidates_are_the_annotated_boxes():
    image, settings = np.zeros((40, 30, 3), np.uint8), ProposalSettings.from_kwargs('ground-truth')
    annotated = AnnotatedImageFile(5, 'x.png', Path('x.png'), np.array([[1.5, 2, 20, 90]]), (40, 30))
    assert find_candidates(image, annotated, settings).tolist() == [[1.5, 2, 20, 40]]
    with pytest.raises(TypeError, match='AnnotatedImageFile'):
        find_candidates(image, IMAGE_FILE, settings)
