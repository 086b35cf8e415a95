import json

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import browse_proposals, plot_box_sizes, plot_boxes
from ccop_mm.visualization.palette import IMAGE_COLORS, bgr


@pytest.fixture
def folder(tmp_path):
    """Three gray images of 40 x 60 pixels, one of them in a subdirectory."""
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    for name in ('0.png', 'a/1.png', '2.png'):
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((40, 60, 3), 100, np.uint8))
    return tmp_path


@pytest.fixture
def store():
    """The size stored for the third image differs from that of its file."""
    boxes = [[5, 5, 35, 25], [10, 10, 20, 20], [0, 0, 60, 40]]
    return ProposalStore([(1, '0.png', (40, 60), boxes), (2, 'a/1.png', (40, 60), []), (3, '2.png', (9, 9), boxes)])


@pytest.fixture
def annotations(folder):
    images = [{'id': 8, 'file_name': '0.png', 'height': 40, 'width': 60}]
    objects = [{'image_id': 8, 'bbox': [5, 5, 30, 20]}, {'image_id': 8, 'bbox': [0, 0, 24, 16]}]
    (folder / 'x.json').write_text(json.dumps({'images': images, 'annotations': objects}))
    return folder / 'x.json'


def test_lines_are_just_inside_the_boxes():
    image = np.full((40, 60, 3), 100, np.uint8)
    plotted = plot_boxes(image, np.array([[5, 6, 35, 26]], np.float32))
    assert (image == 100).all()
    expected = np.zeros((40, 60), bool)
    expected[6:26, 5:35] = True
    expected[7:25, 6:34] = False
    np.testing.assert_array_equal((plotted != 100).any(axis=2), expected)
    assert (plotted[expected] == bgr(IMAGE_COLORS[0])).all()


def test_ground_truth_boxes_are_white_with_a_black_outline():
    plotted = plot_boxes(np.full((40, 60, 3), 100, np.uint8), np.empty((0, 4)), np.array([[10.2, 10, 30, 30]]))
    assert {tuple(color) for color in plotted.reshape(-1, 3).tolist()} == {(100,) * 3, (0,) * 3, (255,) * 3}


def test_images_are_written_to_a_directory(folder, store, annotations):
    written, reasons = browse_proposals(store, folder / 'images', folder / 'out', annotation_file=annotations)
    assert {path.name for path in written} == {'0.png.jpg', 'a__1.png.jpg'}
    assert {path.name for path in (folder / 'out').iterdir()} == {path.name for path in written}
    assert len(reasons) == 1 and all(part in reasons[0] for part in ('2.png', '60 x 40', '9 x 9'))
    with_boxes, without = (cv2.imread(str(folder / 'out' / name)) for name in ('0.png.jpg', 'a__1.png.jpg'))
    assert with_boxes.std() > 20 and without.std() < 2
    # The white ground-truth box covers the proposals.
    assert with_boxes[5, 20].min() > 200 > with_boxes[20, 20].min()


def test_numbers_and_seeds(folder, store):
    written, _ = browse_proposals(store, folder / 'images', folder / 'few', num_images=1, seed=0)
    assert len(written) == 1
    browse_proposals(store, folder / 'images', folder / 'one', num_boxes=1)
    browse_proposals(store, folder / 'images', folder / 'all')
    assert (folder / 'one' / '0.png.jpg').read_bytes() != (folder / 'all' / '0.png.jpg').read_bytes()
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match=f'{numbers[0]} and {numbers[1]}'):
            browse_proposals(store, folder / 'images', folder / 'out', *numbers)


def test_directories_without_the_images(folder, store):
    with pytest.raises(InputError, match='nowhere'):
        browse_proposals(store, folder / 'nowhere', folder / 'out')
    (folder / 'empty').mkdir()
    with pytest.raises(InputError, match=r'empty.*(0|a/1|2)\.png'):
        browse_proposals(store, folder / 'empty', folder / 'out')
    with pytest.raises(InputError, match='images'):
        browse_proposals(ProposalStore([]), folder / 'images', folder / 'out')
    assert not (folder / 'out').exists()


def counts(patch, total):
    """Reads the number of boxes in each of the 40 bins from the outline of a histogram in percent."""
    heights = patch.get_xy()[1:-1:2, 1]
    assert len(heights) == 40
    return np.rint(heights * total / 100).astype(int)


def test_histogram_counts_relative_sides(folder, store, annotations):
    figure = plot_box_sizes(store, annotations, folder / 'sizes.png')
    assert (folder / 'sizes.png').stat().st_size > 5000
    (axes,) = figure.axes
    proposals, objects = (patch for patch in axes.patches if not patch.get_fill())
    # Only 0.png is in both. Its proposals have sizes sqrt(600 / 2400) = 0.5, sqrt(100 / 2400) = 0.204 and 1, and its
    # ground-truth boxes 0.5 and 0.4.
    assert np.flatnonzero(counts(proposals, 3)).tolist() == [8, 20, 39]
    assert np.flatnonzero(counts(objects, 2)).tolist() == [16, 20]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ['proposals (3)', 'annotated objects (2)']
    alone = plot_box_sizes(ProposalStore([(1, '0.png', (40, 60), store.boxes(1))]))
    assert [text.get_text() for text in alone.axes[0].get_legend().get_texts()] == ['proposals (3)']


def test_no_boxes_and_unsupported_suffix(folder):
    plot_box_sizes(ProposalStore([]), out=folder / 'sizes.svg')
    with pytest.raises(InputError, match='sizes.gif'):
        plot_box_sizes(ProposalStore([]), out=folder / 'sizes.gif')
