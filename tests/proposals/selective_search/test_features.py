"""Histograms, compared bit by bit with OpenCV's similarities; other features, compared with plain loops."""

import cv2
import numpy as np
import pytest

from ccop_mm.proposals.selective_search import features
from ccop_mm.proposals.selective_search.graph import Graph


def segment(image, ks=(60, 150)):
    segments = [Graph(image).segment(k) for k in ks]
    channels = [features.Channel(values) for values in cv2.split(image)]
    return segments, features.Histograms(channels, [labels for labels, _ in segments])


def intersection(histograms, i, j):
    return np.cumsum(np.minimum(histograms[i], histograms[j]))[-1]  # cumsum adds sequentially


@pytest.mark.parametrize('name', ['Color', 'Texture'])
def test_intersections_equal_opencv(images, name):
    compared = 0
    for image in images:
        segments, histograms = segment(image)
        for index, (labels, count) in enumerate(segments):
            strategy = getattr(cv2.ximgproc.segmentation, f'createSelectiveSearchSegmentationStrategy{name}')()
            strategy.setImage(image, labels, np.bincount(labels.ravel()).astype(np.int32).reshape(-1, 1), -1)
            ours = (histograms.colors if name == 'Color' else histograms.textures)(index, count)
            for i in range(count):
                for j in range(i + 1):
                    assert intersection(ours, i, j) == np.float32(strategy.get(i, j))
                    compared += 1
    assert compared > 300


def test_textures_of_a_coco_image_equal_opencv(coco_cc31):
    path = min((coco_cc31 / 'images').rglob('*.jpg'), key=lambda path: path.stat().st_size)
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2Lab)
    segments, histograms = segment(image, (150, 450))
    labels, count = segments[1]
    strategy = cv2.ximgproc.segmentation.createSelectiveSearchSegmentationStrategyTexture()
    strategy.setImage(image, labels, np.bincount(labels.ravel()).astype(np.int32).reshape(-1, 1), -1)
    ours = histograms.textures(1, count)
    assert count > 3
    for i in range(count):
        assert intersection(ours, i, 0) == np.float32(strategy.get(i, 0))


def test_boxes_sizes_and_neighbors_equal_plain_loops():
    labels = np.random.default_rng(0).integers(0, 40, (30, 25)).astype(np.int32).repeat(2, 0)
    boxes, sizes, pairs = features.describe(labels, 40)
    expected = set()
    for y in range(1, labels.shape[0]):
        for x in range(1, labels.shape[1]):
            for other in (labels[y, x - 1], labels[y - 1, x], labels[y - 1, x - 1]):
                if other != labels[y, x]:
                    expected.add((min(other, labels[y, x]), max(other, labels[y, x])))
    assert len(expected) > 512  # the hash table has been enlarged
    assert [tuple(pair) for pair in pairs] == sorted(expected)
    for v in range(40):
        y, x = np.nonzero(labels == v)
        assert boxes[v].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert sizes[v] == len(x)


@pytest.mark.parametrize('num_labels', [2, 60])  # 60: more pieces than the initial size of the table
def test_pieces_are_the_distinct_columns_of_labels(num_labels):
    labels = np.random.default_rng(0).integers(0, num_labels, (3, 4000)).astype(np.int32)
    pieces, labels_of_piece = features.overlay(labels)
    np.testing.assert_array_equal(labels_of_piece[pieces], labels.T)
    assert len(labels_of_piece) == len(np.unique(labels.T, axis=0))


def test_counts_are_summed_over_pieces():
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 5, (2, 1000)).astype(np.uint8)
    pieces, labels = rng.integers(0, 12, 1000).astype(np.int32), rng.integers(0, 4, 12).astype(np.int32)
    counts = features.sum_by_label(features.count_bins(pieces, bins, 12, 5), labels, 4)
    for v in range(4):
        inside = bins[:, labels[pieces] == v]
        np.testing.assert_array_equal(counts[v], np.concatenate([np.bincount(row, minlength=5) for row in inside]))


def test_signed_bins_equal_those_of_the_two_stretched_parts():
    derivative = np.random.default_rng(0).normal(0, 50, (40, 50)).astype(np.float32)
    derivative[:5] = 0
    bins, zeros = features.signed_bins(derivative)
    counts = np.bincount(bins, minlength=20).astype(np.int32)[None]
    ours = features.split_signs(counts, np.array([zeros], np.int32))[0].reshape(2, 10)
    for row, part in zip(ours, (np.maximum(derivative, 0), np.minimum(derivative, 0)), strict=True):
        stretched = np.rint(255 * (part.astype(float) - part.min()) / (part.max() - part.min()))
        np.testing.assert_array_equal(row, np.bincount((stretched / 25.6).astype(int).ravel(), minlength=10))
