"""Hierarchies, compared with OpenCV one measure at a time; sorting, compared with the C++ library."""

import ctypes
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from ccop_mm.proposals.selective_search import features
from ccop_mm.proposals.selective_search.graph import SIGMA, Graph
from ccop_mm.proposals.selective_search.grouping import group, group_exactly, std_sort

from .conftest import opencv_strategy

THIRD = 0.3333
MEASURES = [(0.25, 0.25, 0.25, 0.25), (0, THIRD, THIRD, THIRD), (0, 1, 0, 0), (0, 0, 0, 1)]


def describe(image, k):
    labels, count = Graph(image).segment(k)
    boxes, sizes, pairs = features.describe(labels, count)
    histograms = features.Histograms([features.Channel(values) for values in cv2.split(image)], [labels])
    return pairs, boxes, sizes, histograms.colors(0, count), histograms.textures(0, count)


def copies(arrays):
    return [array.copy() for array in arrays]


def opencv_boxes(image, k, measure):
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.addImage(image)
    search.addGraphSegmentation(cv2.ximgproc.segmentation.createGraphSegmentation(SIGMA, k, 100))
    search.addStrategy(opencv_strategy(measure))
    return {(x, y, x + w, y + h) for x, y, w, h in np.asarray(search.process()).reshape(-1, 4).tolist()}


@pytest.mark.parametrize('measure', MEASURES)
def test_boxes_equal_opencv(images, measure):
    weights, num_unfinished = np.array(measure, np.float32), 0
    for image in images:
        regions = describe(image, 40)
        boxes = {tuple(box) for box in regions[1].tolist()}
        merged, finished = group(*copies(regions), weights, image[..., 0].size if image.ndim == 3 else image.size)
        exact = group_exactly(*copies(regions), weights, image.shape[0] * image.shape[1])
        num_unfinished += not finished
        expected = opencv_boxes(image, 40, measure)
        assert boxes | {tuple(box) for box in exact.tolist()} == expected
        if finished:
            assert boxes | {tuple(box) for box in merged.tolist()} == expected
        else:  # the boxes before the tie are equal, too
            np.testing.assert_array_equal(merged, exact[: len(merged)])
    assert num_unfinished < len(images)


def random_regions(rng, count, hub):
    """Creates regions with random neighbors, or with the first region as the only neighbor of all others."""
    every = [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs = [(0, j) for j in range(1, count)] if hub else [pair for pair in every if rng.random() < 4 / count]
    corners = rng.integers(0, 900, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 100, (count, 2))]).astype(np.int32)
    histograms = [rng.dirichlet(np.full(n, 0.3), count).astype(np.float32) for n in (25, 80)]
    sizes = rng.integers(1, 5000, count).astype(np.int32)
    return np.array(pairs, np.int32).reshape(-1, 2), boxes, sizes, *histograms


@pytest.mark.parametrize('hub', [False, True])
def test_group_and_group_exactly_agree_without_ties(hub):
    rng, weights, finished = np.random.default_rng(int(hub)), np.full(4, 0.25, np.float32), 0
    for count in (1, 2, 3, 40, 200, 300):
        regions = random_regions(rng, count, hub)
        merged, done = group(*copies(regions), weights, 10**6)
        exact = group_exactly(*copies(regions), weights, 10**6)
        np.testing.assert_array_equal(merged, exact[: len(merged)])
        finished += done and len(merged) == len(exact)
        assert len(exact) == count - components(count, regions[0])
    assert finished >= 4


def components(count, pairs):
    group_of = list(range(count))
    for i, j in pairs:
        a, b = group_of[i], group_of[j]
        group_of = [a if g == b else g for g in group_of]
    return len(set(group_of))


def test_group_stops_at_two_equal_best_pairs():
    boxes = np.array([[i, 0, i + 1, 2] for i in range(4)], np.int32)
    regions = (np.array([[0, 1], [2, 3]], np.int32), boxes, np.full(4, 2, np.int32), *np.zeros((2, 4, 0), np.float32))
    merged, finished = group(*copies(regions), np.array([0, 0, 0, 1], np.float32), 8)
    assert not finished
    assert len(merged) == 0
    assert len(group_exactly(*copies(regions), np.array([0, 0, 0, 1], np.float32), 8)) == 2


@pytest.fixture(scope='module')
def cpp_sort(tmp_path_factory):
    """std::sort of the C++ library, applied to (float, unsigned) pairs with the float as key."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('needs g++ to call std::sort')
    folder = tmp_path_factory.mktemp('cpp')
    (folder / 'sort.cpp').write_text(
        '#include <algorithm>\nstruct Pair { float key; unsigned value; };\n'
        'extern "C" void sort_pairs(Pair* p, int n) {\n'
        '  std::sort(p, p + n, [](const Pair& a, const Pair& b) { return a.key < b.key; });\n}\n'
    )
    library = folder / 'sort.so'
    subprocess.run([compiler, '-O1', '-shared', '-fPIC', '-o', library, folder / 'sort.cpp'], check=True)
    return ctypes.CDLL(str(library)).sort_pairs


def adversarial_keys(count):
    """Creates keys whose median of three is always a bad pivot (Musser 1997), so that heap sort takes over."""
    half = count // 2
    keys = np.empty(2 * half, np.float32)
    keys[:half:2] = np.arange(1, half + 1)[::2]
    keys[1:half:2] = half + np.arange(1, half + 1)[: len(keys[1:half:2]) * 2 : 2]
    keys[half:] = 2 * np.arange(1, half + 1)
    return keys


def test_order_of_equal_keys_equals_the_cpp_library(cpp_sort):
    rng = np.random.default_rng(0)
    cases = [rng.integers(0, most, count) for count in (0, 1, 2, 16, 17, 100, 3000) for most in (1, 2, 9, 200, 10**6)]
    almost = [np.concatenate([np.sort(rng.integers(0, 50, n)), rng.integers(0, 50, 7)]) for n in (10, 300, 2000)]
    for keys in (*cases, *almost, adversarial_keys(4000), np.floor(adversarial_keys(4000) / 8)):
        keys = keys.astype(np.float32)
        pairs = np.empty(len(keys), [('key', np.float32), ('value', np.uint32)])
        pairs['key'], pairs['value'] = keys, np.arange(len(keys))
        packed = (keys.view(np.int32).astype(np.int64) << 32) | np.arange(len(keys))
        cpp_sort(pairs.ctypes.data_as(ctypes.c_void_p), len(keys))
        std_sort(packed)
        np.testing.assert_array_equal(packed & 0xFFFFFFFF, pairs['value'])
