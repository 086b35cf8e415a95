import cv2
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ccop_mm.models import SCSBoxJitter
from ccop_mm.proposals import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import load_jitter, plot_curriculum, sample_images
from ccop_mm.visualization.curriculum_figure import WIDTH, select_disjoint

PROGRESSES = (0, 0.25, 1)


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(*shape, 3)).astype(np.uint8) for shape in ((60, 90), (120, 80))]
    proposals = [
        np.array([[5, 5, 35, 30], [50, 20, 85, 55], [6, 6, 30, 30], [40, 2, 48, 9]], np.float32),
        np.array([[10, 10, 50, 50], [20, 70, 70, 110]], np.float32),
    ]
    return images, proposals


def rectangles(axes, label):
    boxes = [patch.get_bbox().extents for patch in axes.patches if patch.get_label() == label]
    return np.array(boxes).reshape(-1, 4)


def test_rectangles_match_the_data(scene):
    images, proposals = scene
    jitter = SCSBoxJitter(num_jitter=6)
    figure = plot_curriculum(images, proposals, jitter, PROGRESSES, seed=4, num_proposals=3, num_objects=2)
    cells = np.array(figure.axes).reshape(2, 3)
    # The first three proposals of each image are shown, and two disjoint ones of them have candidates. In the first
    # image the third proposal is selected instead of the first, because it is closer to a tenth of the image.
    objects = [[2, 1], [0, 1]]
    reference = SCSBoxJitter(num_jitter=6)
    for row, (image, boxes) in enumerate(zip(images, proposals, strict=True)):
        for column, reference.progress in enumerate(PROGRESSES):
            axes = cells[row, column]
            np.testing.assert_allclose(rectangles(axes, 'proposal'), boxes[:3])
            plotted = rectangles(axes, 'object')
            assert {tuple(box) for box in plotted} == {tuple(boxes[index]) for index in objects[row]}
            generator = torch.Generator().manual_seed(4 + row)
            expected, valid = reference.jitter(torch.from_numpy(plotted).float(), image.shape[:2], generator)
            assert valid.all()
            np.testing.assert_allclose(rectangles(axes, 'candidate'), expected.flatten(0, 1), rtol=1e-5)
            assert axes.images[0].get_extent() == [0, image.shape[1], image.shape[0], 0]
    assert jitter.progress == 0.0


def test_invalid_candidates_are_not_plotted(scene):
    images, proposals = scene
    jitter = SCSBoxJitter(num_jitter=50, redraw=False)
    axes = plot_curriculum(images, proposals, jitter, (0.5,), seed=1).axes[0]
    objects = torch.from_numpy(rectangles(axes, 'object')).float()
    jitter.progress = 0.5
    candidates, valid = jitter.jitter(objects, (60, 90), torch.Generator().manual_seed(1))
    assert 0 < valid.sum() < valid.numel()
    np.testing.assert_allclose(rectangles(axes, 'candidate'), candidates[valid], rtol=1e-5)


def test_titles_show_the_stage(scene):
    figure = plot_curriculum(*scene, SCSBoxJitter(noise=(0.2, 0.6), min_iou=(0.9, 0.5)), (0, 0.5, 1))
    titles = [axes.get_title() for axes in figure.axes]
    stages = ('0', '0.20', '0.90'), ('0.5', '0.40', '0.70'), ('1', '0.60', '0.50')
    for title, values in zip(titles[:3], stages, strict=True):
        assert [f'= {value}' in title for value in values] == [True] * 3
    assert titles[3:] == [''] * 3


def test_files(scene, tmp_path):
    for name in ('a.png', 'b.png', 'a.svg'):
        figure = plot_curriculum(*scene, SCSBoxJitter(), out=tmp_path / name, seed=2)
    width, height = figure.get_size_inches()
    assert width == WIDTH
    assert Image.open(tmp_path / 'a.png').size == (int(WIDTH * 200), int(height * 200))
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
    assert b'<svg' in (tmp_path / 'a.svg').read_bytes()
    plot_curriculum(*scene, SCSBoxJitter(), out=tmp_path / 'b.png', seed=3)
    assert (tmp_path / 'a.png').read_bytes() != (tmp_path / 'b.png').read_bytes()


def test_texts_and_cells_do_not_overlap(scene):
    figure = plot_curriculum(*scene, SCSBoxJitter())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [axes.get_window_extent(renderer) for axes in figure.axes]
    boxes += [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    boxes += [text.get_window_extent(renderer) for text in figure.legends[0].get_texts()]
    page = figure.bbox
    for index, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        assert box.count_overlaps(boxes[:index]) == 0


def test_image_without_proposals(scene):
    images, _ = scene
    figure = plot_curriculum(images, [np.zeros((0, 4))] * 2, SCSBoxJitter())
    assert not any(axes.patches for axes in figure.axes)


def test_select_disjoint_prefers_boxes_of_medium_size():
    boxes = torch.tensor([[0, 0, 100, 100], [0, 0, 32, 32], [1, 1, 30, 30], [60, 60, 64, 64], [40, 40, 80, 60]]).float()
    assert select_disjoint(boxes, (100, 100), 3) == [1, 4, 3]
    assert select_disjoint(boxes, (100, 100), 1) == [1]
    assert select_disjoint(boxes[:0], (100, 100), 3) == []


def test_bad_arguments(scene, tmp_path):
    images, proposals = scene
    with pytest.raises(InputError, match='a.gif'):
        plot_curriculum(images, proposals, SCSBoxJitter(), out=tmp_path / 'a.gif')
    with pytest.raises(InputError, match='0, 1.5'):
        plot_curriculum(images, proposals, SCSBoxJitter(), (0, 1.5))
    with pytest.raises(ValueError, match='2 images, 1 arrays'):
        plot_curriculum(images, proposals[:1], SCSBoxJitter())


def test_sample_images(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.visualization.curriculum_figure.print_log', lambda line, *_: lines.append(line))
    entries = []
    for image_id in range(1, 7):
        image = np.full((20, 30, 3), (0, 0, 10 * image_id), np.uint8)  # BGR: red
        cv2.imwrite(str(tmp_path / f'{image_id}.png'), image)
        entries.append((image_id, f'{image_id}.png', (20, 30), [[0, 0, image_id, 9]] * (image_id != 2)))
    (tmp_path / '3.png').unlink()
    cv2.imwrite(str(tmp_path / '4.png'), np.zeros((30, 20, 3), np.uint8))
    store = ProposalStore(entries)
    images, proposals = sample_images(store, tmp_path, num=10)
    assert {(image[0, 0, 0], boxes[0, 2]) for image, boxes in zip(images, proposals, strict=True)} == {
        (10, 1), (50, 5), (60, 6)}  # fmt: skip
    assert sorted(line.split(':')[0] for line in lines) == ['skipped 3.png', 'skipped 4.png']
    firsts = {sample_images(store, tmp_path, 1, seed)[0][0][0, 0, 0] for seed in range(8)}
    assert len(firsts) > 1
    with pytest.raises(InputError, match='absent'):
        sample_images(store, tmp_path / 'absent')
    with pytest.raises(InputError, match=str(tmp_path)):
        sample_images(ProposalStore(entries[1:4]), tmp_path)
    with pytest.raises(InputError, match='got 0'):
        sample_images(store, tmp_path, 0)


def test_load_jitter(tmp_path):
    assert repr(load_jitter()) == repr(SCSBoxJitter())
    path = tmp_path / 'config.py'
    path.write_text("model = dict(box_jitter=dict(type='SCSBoxJitter', noise=(0.1, 0.2)))")
    assert load_jitter(path).noise == (0.1, 0.2)
    path.write_text("model = dict(type='CCOP')")
    assert load_jitter(path).noise == (0.3, 1.0)
    with pytest.raises(InputError, match='absent.py'):
        load_jitter(tmp_path / 'absent.py')
