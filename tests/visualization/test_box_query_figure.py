import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.evaluation.pointing_probe import ObjectViews, ViewSampler
from ccop_mm.utils.coco_json import AnnotatedImage
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import collect_box_queries, plot_box_queries

SIZE = 128


class ColorModel(nn.Module):
    """Model whose features are colors: every stage and level is the normalized input averaged over cells."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = SelfSupDataPreprocessor(mean=(128.0,) * 3, std=(128.0,) * 3, bgr_to_rgb=True)
        self.scale = nn.Parameter(torch.ones(()))

    def backbone(self, x):
        return tuple(self.scale * F.avg_pool2d(x, stride) for stride in (4, 8, 16, 32))

    def neck(self, stages):
        return stages

    def embed_objects(self):
        raise AssertionError('must not be called')


class IdentityViews(ViewSampler):
    """Returns the image itself as both views."""

    def __init__(self):
        super().__init__(SIZE)

    def sample(self, image, boxes, index, repeat=0):
        return ObjectViews((image, image), (torch.from_numpy(boxes),) * 2, torch.arange(len(boxes)))


@pytest.fixture
def images(tmp_path):
    """Two images of gray noise, each with a red and a blue square aligned to cells of 32 px."""
    rng, images = np.random.default_rng(0), []
    for number in range(2):
        image = rng.integers(118, 138, (SIZE, SIZE, 3), dtype=np.uint8)
        boxes = np.array([[0, 32, 32, 64], [64, 64, 128, 128]], np.float32)
        for (x1, y1, x2, y2), color in zip(boxes.astype(int), ((0, 0, 255), (255, 0, 0)), strict=True):
            image[y1:y2, x1:x2] = color
        path = tmp_path / f'{number}.png'
        cv2.imwrite(str(path), image)
        images.append((number, AnnotatedImage(path, (SIZE, SIZE), boxes, np.array([1, 2]))))
    return images


def inside(point, box):
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def test_maximum_in_the_same_view_is_inside_the_query_box(images):
    queries = collect_box_queries(ColorModel(), images, SIZE, num=2, sampler=IdentityViews())
    assert len(queries) == 2
    for query in queries:
        assert query.boxes[0].tolist() == [64, 64, 128, 128]  # the larger object
        assert list(query.heat) == ['P2', 'P3', 'P4', 'P5']
        for level, heat in query.heat.items():
            assert heat.max() == pytest.approx(1, abs=1e-4)
            assert inside(query.best(level), query.boxes[1]), level
            # The other square is dissimilar.
            stride = SIZE // heat.shape[0]
            assert heat[40 // stride, 10 // stride] < 0.5
        assert query.images[0][100, 100].tolist() == [0, 0, 255]  # RGB


def test_levels_and_sampled_views(images):
    queries = collect_box_queries(ColorModel(), images, SIZE, num=2, levels=('P2', 'P3'), seed=1)
    for query in queries:
        assert query.images[0].shape == (SIZE, SIZE, 3)
        assert list(query.heat) == ['P2', 'P3']
        assert query.heat['P2'].shape == (32, 32)


def test_figure(images, tmp_path):
    queries = collect_box_queries(ColorModel(), images, SIZE, num=2, sampler=IdentityViews())
    figure = plot_box_queries(queries, tmp_path / 'a.png')
    plot_box_queries(queries, tmp_path / 'a.svg')
    assert (tmp_path / 'a.png').stat().st_size > 5000 and b'<svg' in (tmp_path / 'a.svg').read_bytes()
    assert len(figure.axes) == 2 * 6
    frames = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    assert {(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in frames} == {(64, 64, 64, 64)}
    for axes, level in zip(figure.axes[2:6], ('P2', 'P3', 'P4', 'P5'), strict=True):
        assert axes.get_title().startswith(f'{level}\n')
        (x,), (y,) = axes.lines[0].get_data()
        assert (x, y) == queries[0].best(level)
        np.testing.assert_array_equal(axes.images[1].get_array(), queries[0].heat[level])
    with pytest.raises(InputError, match='a.gif'):
        plot_box_queries(queries, tmp_path / 'a.gif')


def test_no_usable_object(images):
    for _, annotated in images:
        annotated.boxes = np.array([[0, 0, SIZE, SIZE]], np.float32)
    with pytest.raises(InputError, match='2 images'):
        collect_box_queries(ColorModel(), images, SIZE, sampler=IdentityViews())
