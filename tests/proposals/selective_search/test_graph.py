"""Segmentations, compared with OpenCV pixel by pixel."""

import cv2
import numpy as np
import pytest

from ccop_mm.proposals.selective_search import graph


def opencv_labels(image, k):
    return cv2.ximgproc.segmentation.createGraphSegmentation(graph.SIGMA, k, graph.MIN_SIZE).processImage(image)


def test_labels_equal_opencv(images):
    for image in images:
        edges = graph.Graph(image)
        for k in (20, 150, 450):
            labels, count = edges.segment(k)
            np.testing.assert_array_equal(labels, opencv_labels(image, k))
            assert count == labels.max() + 1


def test_labels_of_coco_images_equal_opencv(coco_cc31):
    for path in sorted((coco_cc31 / 'images').rglob('*.jpg'))[:2]:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
        edges = graph.Graph(image)
        for k in (150, 750):
            np.testing.assert_array_equal(edges.segment(k)[0], opencv_labels(image, k))


def test_relevant_ties_are_detected_and_broken_as_in_opencv():
    """Stripes of 1 pixel: every small component has two neighbors at the same weight."""
    image = np.zeros((34, 56), np.uint8)
    image[:, ::4] = 255
    edges = graph.Graph(image)
    labels, _ = edges.segment(150)
    assert edges._exact_edges is not None
    np.testing.assert_array_equal(labels, opencv_labels(image, 150))


def test_irrelevant_ties_need_no_second_sort():
    """Two spots in a large constant area have the same weight, but every order joins both to it."""
    image = np.full((60, 60), 100, np.uint8)
    image[10:14, 10:14] = image[40:44, 40:44] = 255
    edges = graph.Graph(image)
    labels, _ = edges.segment(150)
    assert edges._exact_edges is None
    np.testing.assert_array_equal(labels, opencv_labels(image, 150))


def test_edges_are_sorted_and_complete():
    weights = np.random.default_rng(0).gamma(0.5, 40, 5000).astype(np.float32)
    weights[::7] = weights[3]
    ascending, edges = graph.sort_edges(weights.copy(), np.arange(5000, dtype=np.int32))
    np.testing.assert_array_equal(ascending, np.sort(weights))
    np.testing.assert_array_equal(weights[edges], ascending)
    np.testing.assert_array_equal(np.sort(edges), np.arange(5000))


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_both_lists_of_edges_contain_every_pair_of_neighbors(shape):
    smooth = np.random.default_rng(1).random((*shape, 3), np.float32)
    height, width = shape
    weights, edges = graph.edge_weights(smooth)
    expected = {2 * (y * width + x) for y in range(height) for x in range(width - 1)}
    expected |= {2 * (y * width + x) + 1 for y in range(height - 1) for x in range(width)}
    assert sorted(edges.tolist()) == sorted(expected)
    both = graph.edges_from_both_ends(smooth)
    assert sorted((both & 0xFFFFFFFF).tolist()) == sorted([*expected, *expected])
    for weight, code in zip(weights, edges, strict=True):
        y, x = divmod(code // 2, width)
        other = smooth[y + code % 2, x + 1 - code % 2]
        assert weight == pytest.approx(np.linalg.norm(smooth[y, x].astype(float) - other), rel=1e-5)
