import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.boxes import aligned_iou
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import image_id_from_path
from ccop_mm.visualization.views_figure import load_views, object_colors, plot_views

BOXES = [[x, y, x + 24, y + 24] for y in (8, 48) for x in (8, 48, 88)]
COLORS = [[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [250, 20, 250], [20, 250, 250]]


@pytest.fixture
def config(tmp_path):
    """Three images, each with six squares on gray whose colors (RGB) are unique: the center of a box identifies it."""
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(3):
        image = np.full((80, 120, 3), 90, np.uint8)
        for (x1, y1, x2, y2), color in zip(BOXES, COLORS, strict=True):
            image[y1:y2, x1:x2] = color[::-1]
        cv2.imwrite(str(tmp_path / 'images' / f'{number}.png'), image)
        entries.append((image_id_from_path(f'{number}.png'), f'{number}.png', (80, 120), BOXES))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    views = [dict(type='ObjectResizedCrop', size=96, scale=(0.7, 1.0)), dict(type='ObjectFlip')]
    pipeline = [
        dict(type='LoadUnlabeledImage', decode=False),
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


def test_matched_boxes_show_the_same_object(config):
    views, samples = load_views(config, [0, 1, 2])
    num_checked = 0
    for row, sample in enumerate(samples):
        label, objects = sample.pseudo_label, []
        for boxes, view in ((label.boxes_q, views[0][row]), (label.boxes_k, views[1][row])):
            centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().tolist()
            seen = [np.abs(np.array(COLORS) - view[y, x]).sum(1).argmin() for x, y in centers]
            pairs = zip(seen, centers, strict=True)
            errors = [np.abs(COLORS[one] - view[y, x].astype(int)).max() for one, (x, y) in pairs]
            assert max(errors, default=0) <= 3, 'the views are not in RGB'
            objects.append(seen)
        assert objects[0] == objects[1]
        num_checked += len(objects[0])
    assert num_checked > 6


def patches(axes, label):
    return [(patch.get_bbox().extents, patch.get_edgecolor()) for patch in axes.patches if patch.get_label() == label]


def test_matched_boxes_share_a_color_and_candidates_reach_the_minimum_iou(config, tmp_path):
    figure = plot_views(config, [2, 0], progress=0.5, out=tmp_path / 'views.png')
    assert (tmp_path / 'views.png').stat().st_size > 10000
    assert len(figure.axes) == 6
    _, samples = load_views(config, [2, 0])
    for row, sample in enumerate(samples):
        query, key, jittered = figure.axes[3 * row : 3 * row + 3]
        name = sample.img_path.rpartition('/')[2]
        assert name in query.get_title() and f' {len(sample.pseudo_label.boxes_q)} objects' in query.get_title()
        plotted_q, plotted_k = patches(query, 'object'), patches(key, 'object')
        assert [color for _, color in plotted_q] == [color for _, color in plotted_k]
        assert len({color for _, color in plotted_q}) == len(plotted_q)
        for plotted, boxes in ((plotted_q, sample.pseudo_label.boxes_q), (plotted_k, sample.pseudo_label.boxes_k)):
            np.testing.assert_allclose([box for box, _ in plotted], boxes.numpy(), atol=1e-3)
        objects = {color: box for box, color in patches(jittered, 'object')}
        candidates = patches(jittered, 'candidate')
        assert len(candidates) == 4 * len(objects)
        for box, color in candidates:
            pair = torch.from_numpy(np.stack([box, objects[color]]))
            assert aligned_iou(pair[0], pair[1]) >= 0.55 - 1e-5  # beta at t = 0.5


def test_views_depend_on_the_epoch(config):
    first, second = load_views(config, [0])[0], load_views(config, [0], epoch=1)[0]
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[0], load_views(config, [0])[0][0])


def test_images_are_sampled_by_default(config):
    assert len(load_views(config, num=2)[1]) == 2
    assert len(load_views(config, num=9)[1]) == 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(indices=[3]), r'0 to 2.*\[3\]'),
        (dict(num=0), r'0 to 2.*\[\]'),
        (dict(progress=2), 'got 2'),
        (dict(out='a.gif'), 'a.gif'),
    ],
)
def test_bad_input(config, arguments, message):
    with pytest.raises(InputError, match=message):
        plot_views(config, **arguments)


def test_config_without_dataset(config):
    with pytest.raises(InputError, match='train_dataloader'):
        plot_views(Config(dict(model={})))


def test_object_colors_are_unique():
    for count in (0, 1, 12):
        assert len({tuple(color) for color in object_colors(count)}) == count
