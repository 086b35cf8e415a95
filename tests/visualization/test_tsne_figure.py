import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ccop_mm.utils.coco_json import class_names
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import compute_tsne, plot_tsne


def clusters(count=4, members=25, dim=32, noise=0.3):
    rng = np.random.default_rng(0)
    centers = np.linalg.qr(rng.normal(size=(dim, count)))[0].T
    labels = np.repeat(np.arange(count), members)
    features = centers[labels] + noise / dim**0.5 * rng.normal(size=(len(labels), dim))
    return features * rng.uniform(1, 9, (len(labels), 1)), labels  # the norm of a feature must have no effect


def nearest_neighbor_accuracy(points, labels):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(1)] == labels).mean()


def test_clusters_are_separated():
    features, labels = clusters()
    points = compute_tsne(features)
    assert points.shape == (100, 2)
    assert nearest_neighbor_accuracy(points, labels) == 1
    # The largest distance to a cluster center is below half of the smallest distance between centers.
    centers = np.array([points[labels == label].mean(0) for label in range(4)])
    radius = max(np.linalg.norm(points - centers[labels], axis=1))
    distance = min(np.linalg.norm(centers[i] - centers[j]) for i in range(4) for j in range(i))
    assert radius < distance / 2


def test_random_features_have_no_clusters():
    features = np.random.default_rng(1).normal(size=(100, 32))
    labels = np.arange(100) % 4
    assert nearest_neighbor_accuracy(compute_tsne(features), labels) < 0.6


def test_seed_and_few_objects():
    features, _ = clusters(members=2)
    np.testing.assert_array_equal(compute_tsne(features, 3), compute_tsne(features, 3))
    with pytest.raises(InputError, match='got 3'):
        compute_tsne(features[:3])
    features[0, 0] = np.nan
    with pytest.raises(InputError, match='1 of 8'):
        compute_tsne(features)


def test_figure(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 20
    names = {n: f'class number {n}' for n in range(19)}
    panels = {'backbone feature, C5': rng.normal(size=(60, 2)), 'embedding': rng.normal(size=(60, 2))}
    figure = plot_tsne(panels, labels, names, tmp_path / 'a.png')
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    for axes, points in zip(figure.axes, panels.values(), strict=True):
        plotted = np.concatenate([part.get_offsets() for part in axes.collections])
        np.testing.assert_allclose(plotted, points[np.argsort(labels, kind='stable')])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*names.values(), '19']
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    legend = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
    assert not any(legend.overlaps(axes.get_window_extent(canvas.get_renderer())) for axes in figure.axes)
    plot_tsne({'one': panels['embedding']}, labels, names, tmp_path / 'a.svg')
    assert b'<svg' in (tmp_path / 'a.svg').read_bytes()
    assert Image.open(tmp_path / 'a.png').size[0] == int(7.16 * 200)
    with pytest.raises(InputError, match='a.gif'):
        plot_tsne(panels, labels, names, tmp_path / 'a.gif')


def test_class_names(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'categories': [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]}))
    assert class_names(path) == {3: 'cat', 7: 'dog'}
