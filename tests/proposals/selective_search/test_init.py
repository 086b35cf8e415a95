"""Complete searches, compared with OpenCV."""

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import propose
from ccop_mm.proposals.selective_search import search

from .conftest import random_image


@pytest.mark.parametrize('mode', ['fast', 'quality', 'single'])
def test_boxes_of_scenes_equal_opencv(scene, mode):
    for seed, shape in enumerate([(72, 96), (150, 200), (40, 300)]):
        image = scene(seed, *shape)
        np.testing.assert_array_equal(search(image, mode), propose(image, mode, 'opencv'))


@pytest.mark.parametrize('mode', ['fast', 'single'])
def test_boxes_of_a_coco_image_equal_opencv(coco_cc31, mode):
    for path in sorted((coco_cc31 / 'images').rglob('*.jpg'))[1:2]:
        image = cv2.imread(str(path))
        np.testing.assert_array_equal(search(image, mode), propose(image, mode, 'opencv'))


def test_quality_boxes_of_a_coco_image_equal_opencv(coco_cc31):
    """The measures of fill and size have many ties."""
    path = sorted((coco_cc31 / 'images').rglob('*.jpg'))[3]
    image = cv2.resize(cv2.imread(str(path)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(search(image, 'quality'), propose(image, 'quality', 'opencv'))


@pytest.mark.parametrize('seed', range(4))
def test_boxes_of_random_images_equal_opencv(seed):
    """Includes exact ties, which requires an OpenCV built with the GNU C++ library."""
    rng = np.random.default_rng(seed)
    for index in range(50):
        image, mode = random_image(rng), ('fast', 'single', 'quality')[index % 3]
        found, expected = search(image, mode), propose(image, mode, 'opencv')
        np.testing.assert_array_equal(found, expected, err_msg=f'image {index} {image.shape} {mode}')


def test_input_is_not_modified(scene):
    image = scene(2)
    before = image.copy()
    search(image, 'quality')
    np.testing.assert_array_equal(image, before)


def test_memory_layout_does_not_matter(scene):
    image = scene(3)
    np.testing.assert_array_equal(search(np.asfortranarray(image), 'quality'), search(image, 'quality'))
    np.testing.assert_array_equal(search(scene(3)[:, 10:, :], 'single'), search(image[:, 10:].copy(), 'single'))
