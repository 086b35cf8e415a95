"""One photo's boxes, by either engine, against OpenCV called directly."""

import cv2
import numpy as np
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import propose
from ccop_mm.proposals.search import ENGINES


def opencv_boxes(image, mode):
    """The distinct boxes of a direct run, as a set of tuples."""
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
def test_boxes_are_opencv_s_distinct_ones_in_canonical_order(scene, mode, engine):
    image = scene(3)
    boxes = propose(image, mode, engine)
    assert boxes.dtype == np.float32
    # A sorted list of a set: the same boxes, none twice, in ascending order.
    assert [tuple(box) for box in boxes.tolist()] == sorted(opencv_boxes(image, mode))
    assert [0, 0, 96, 72] in boxes.tolist()


def test_order_does_not_depend_on_opencv_s_random_numbers(scene):
    image = scene(4)
    first = propose(image, engine='opencv')
    propose(scene(5), engine='opencv')  # draws from rand() in between
    np.testing.assert_array_equal(first, propose(image, engine='opencv'))


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_photos_give_boxes_inside(shape, engine):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    boxes = propose(image, engine=engine)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= shape[1]
    assert boxes[:, 3].max() <= shape[0]


def test_missing_ximgproc_names_the_cure(monkeypatch, scene):
    monkeypatch.delattr(cv2, 'ximgproc')
    with pytest.raises(InputError, match=r'opencv-contrib-python.*ccop_mm\.doctor') as caught:
        propose(scene(0), engine='opencv')
    assert '\n' not in str(caught.value)
    assert len(propose(scene(0)))  # the native engine does not need it


def test_unknown_mode_and_wrong_arrays(scene):
    with pytest.raises(InputError, match='fast, quality, single'):
        propose(scene(0), 'slow')
    with pytest.raises(InputError, match='native, opencv'):
        propose(scene(0), engine='gpu')
    for image in (scene(0)[..., 0], scene(0).astype(np.float32)):
        with pytest.raises(ValueError, match='uint8'):
            propose(image)
