import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from ccop_mm.boxes import aligned_iou
from ccop_mm.errors import InputError
from ccop_mm.proposals.sources import image_id_of
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.visualization.views_figure import colors_of, draw_views, load_views

BOXES = [[x, y, x + 24, y + 24] for y in (8, 48) for x in (8, 48, 88)]
COLORS = [[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [250, 20, 250], [20, 250, 250]]


@pytest.fixture
def config(tmp_path):
    """Three photos, each with six squares of a color of their own (RGB) on grey: a box's middle tells which it is."""
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(3):
        image = np.full((80, 120, 3), 90, np.uint8)
        for (x1, y1, x2, y2), color in zip(BOXES, COLORS, strict=True):
            image[y1:y2, x1:x2] = color[::-1]
        cv2.imwrite(str(tmp_path / 'images' / f'{number}.png'), image)
        entries.append((image_id_of(f'{number}.png'), f'{number}.png', (80, 120), BOXES))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    views = [dict(type='ObjectResizedCrop', size=96, scale=(0.7, 1.0)), dict(type='ObjectFlip')]
    pipeline = [
        dict(type='LoadPhoto', decode=False),
        dict(type='SplitTwoObjectViews', transforms=views),
        dict(type='PackObjectViews', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
    ]
    dataset = dict(type='ProposalDataset', data_root=str(tmp_path), proposal_file='proposals.npz', pipeline=pipeline)
    preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    return Config(
        dict(
            model=dict(data_preprocessor=preprocessor, box_jitter=dict(type='SCSBoxJitter', num_jitter=4)),
            train_dataloader=dict(dataset=dataset),
        )
    )


def test_a_row_of_boxes_is_one_object_in_the_pixels_that_are_shown(config):
    views, samples = load_views(config, [0, 1, 2])
    checked = 0
    for row, sample in enumerate(samples):
        label, objects = sample.pseudo_label, []
        for boxes, view in ((label.boxes_q, views[0][row]), (label.boxes_k, views[1][row])):
            centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().tolist()
            seen = [np.abs(np.array(COLORS) - view[y, x]).sum(1).argmin() for x, y in centers]
            pairs = zip(seen, centers, strict=True)
            errors = [np.abs(COLORS[one] - view[y, x].astype(int)).max() for one, (x, y) in pairs]
            assert max(errors, default=0) <= 3, 'colors are those of the photo, in RGB'
            objects.append(seen)
        assert objects[0] == objects[1]
        checked += len(objects[0])
    assert checked > 6


def patches(axes, label):
    return [(patch.get_bbox().extents, patch.get_edgecolor()) for patch in axes.patches if patch.get_label() == label]


def test_matched_boxes_share_a_color_and_candidates_reach_the_floor(config, tmp_path):
    figure = draw_views(config, [2, 0], progress=0.5, out=tmp_path / 'views.png')
    assert (tmp_path / 'views.png').stat().st_size > 10000
    assert len(figure.axes) == 6
    _, samples = load_views(config, [2, 0])
    for row, sample in enumerate(samples):
        query, key, jittered = figure.axes[3 * row : 3 * row + 3]
        name = sample.img_path.rpartition('/')[2]
        assert query.get_title() == f'{name}: query, {len(sample.pseudo_label.boxes_q)} common objects'
        drawn_q, drawn_k = patches(query, 'object'), patches(key, 'object')
        assert [color for _, color in drawn_q] == [color for _, color in drawn_k]
        assert len({color for _, color in drawn_q}) == len(drawn_q)
        for drawn, boxes in ((drawn_q, sample.pseudo_label.boxes_q), (drawn_k, sample.pseudo_label.boxes_k)):
            np.testing.assert_allclose([box for box, _ in drawn], boxes.numpy(), atol=1e-3)
        objects = {color: box for box, color in patches(jittered, 'object')}
        candidates = patches(jittered, 'candidate')
        assert len(candidates) == 4 * len(objects)
        for box, color in candidates:
            pair = torch.from_numpy(np.stack([box, objects[color]]))
            assert aligned_iou(pair[0], pair[1]) >= 0.55 - 1e-5  # beta at t = 0.5


def test_another_epoch_shows_other_views(config):
    first, second = load_views(config, [0])[0], load_views(config, [0], epoch=1)[0]
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[0], load_views(config, [0])[0][0])


def test_photos_are_drawn_at_random_if_none_is_named(config):
    assert len(load_views(config, num=2)[1]) == 2
    assert len(load_views(config, num=9)[1]) == 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(indices=[3]), 'from 0 to 2'),
        (dict(num=0), 'from 0 to 2'),
        (dict(progress=2), 'fraction'),
        (dict(out='a.gif'), 'png'),
    ],
)
def test_bad_input_is_one_line(config, arguments, message):
    with pytest.raises(InputError, match=message):
        draw_views(config, **arguments)


def test_a_config_without_photos(config):
    with pytest.raises(InputError, match='train_dataloader'):
        draw_views(Config(dict(model={})))


def test_colors_are_apart():
    for count in (0, 1, 12):
        assert len({tuple(color) for color in colors_of(count)}) == count
