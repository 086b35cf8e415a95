import copy

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes

from ccop_mm.detection import KeypointBoxes

FLIP = [0, 2, 1]  # keypoints 1 and 2 are left and right


def make_boxes():
    boxes = torch.tensor([[10.0, 20, 50, 80], [0, 0, 30, 30]])
    keypoints = torch.tensor([[[12.0, 22], [40, 30], [20, 70]], [[5, 5], [25, 6], [1, 29]]])
    return KeypointBoxes(boxes, keypoints, torch.tensor([[1.0, 1, 0], [1, 0, 1]]), FLIP)


def map_keypoints(boxes, function, swap):
    """Applies a function of one point to all keypoints and optionally swaps left and right."""
    points = torch.tensor([[function(*point) for point in row] for row in boxes.keypoints.tolist()])
    return (points[:, FLIP], boxes.visible[:, FLIP]) if swap else (points, boxes.visible)


@pytest.mark.parametrize(
    ('operation', 'function', 'swap'),
    [
        (lambda boxes: boxes.flip_((100, 60), 'horizontal'), lambda x, y: (60 - x, y), True),
        (lambda boxes: boxes.flip_((100, 60), 'vertical'), lambda x, y: (x, 100 - y), True),
        (lambda boxes: boxes.flip_((100, 60), 'diagonal'), lambda x, y: (60 - x, 100 - y), False),
        (lambda boxes: boxes.translate_((3, -4)), lambda x, y: (x + 3, y - 4), False),
        (lambda boxes: boxes.rescale_((2, 0.5)), lambda x, y: (2 * x, y / 2), False),
        # OpenCV rotates counter-clockwise, with y pointing down; mmdet passes it the negative angle.
        (lambda boxes: boxes.rotate_((10, 20), 90), lambda x, y: (10 - (y - 20), 20 + (x - 10)), False),
        (
            lambda boxes: boxes.project_(np.array([[-1.0, 0, 60], [0, 1, 5], [0, 0, 1]])),
            lambda x, y: (60 - x, y + 5),
            True,
        ),
        (
            lambda boxes: boxes.project_(torch.tensor([[1, 0.1, 0], [0, 1, 0], [0.001, 0, 1]])),
            lambda x, y: ((x + 0.1 * y) / (1 + 0.001 * x), y / (1 + 0.001 * x)),
            False,
        ),
    ],
    ids=['horizontal', 'vertical', 'diagonal', 'translate', 'rescale', 'rotate', 'mirror', 'perspective'],
)
def test_geometric_operations_transform_boxes_and_keypoints(operation, function, swap):
    boxes, plain = make_boxes(), HorizontalBoxes(make_boxes().tensor)
    points, visible = map_keypoints(boxes, function, swap)
    operation(boxes)
    operation(plain)
    torch.testing.assert_close(boxes.tensor, plain.tensor)
    torch.testing.assert_close(boxes.keypoints, points, rtol=1e-5, atol=1e-4)
    assert torch.equal(boxes.visible, visible)


def test_clipping_marks_keypoints_outside_as_not_labeled():
    boxes = make_boxes()
    boxes.clip_((60, 25))
    assert boxes.visible.tolist() == [[1, 0, 0], [1, 0, 1]]
    boxes = make_boxes()
    boxes.clip_((29, 25))  # a keypoint on the border is inside
    assert boxes.visible.tolist() == [[1, 0, 0], [1, 0, 1]]
    boxes.clip_((28, 25))
    assert boxes.visible.tolist() == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize('index', [1, [1], slice(1, 2), np.array([False, True]), torch.tensor([1]), np.int64(1)])
def test_indexing_selects_keypoints(index):
    chosen = make_boxes()[index]
    assert chosen.keypoints.tolist() == make_boxes().keypoints[1:].tolist()
    assert chosen.visible.tolist() == [[1, 0, 1]]
    assert chosen.tensor.tolist() == [[0, 0, 30, 30]]
    assert chosen.flip_indices == FLIP


def test_concatenation_copies_and_assignment():
    boxes = make_boxes()
    joined = boxes.cat([boxes, boxes[[1]]])
    assert len(joined) == len(joined.keypoints) == len(joined.visible) == 3
    for other in (boxes.clone(), copy.deepcopy(boxes), boxes.to(torch.float64)):
        other.keypoints[0] = 0
        other.visible[0] = 0
        other.tensor[0] = 0
    assert torch.equal(boxes.keypoints, make_boxes().keypoints) and torch.equal(boxes.visible, make_boxes().visible)
    assert boxes.to(torch.float64).keypoints.dtype == torch.float64
    boxes[[0]] = boxes[[1]]
    assert torch.equal(boxes.keypoints[0], boxes.keypoints[1]) and torch.equal(boxes.visible[0], boxes.visible[1])
    with pytest.raises(TypeError, match='dimension.*1'):
        boxes.cat([boxes], dim=1)


def test_operations_without_an_equivalent_for_keypoints_raise():
    for operation in (
        lambda boxes: boxes.repeat(2, 1),
        lambda boxes: boxes.split(1),
        lambda boxes: boxes.resize_((2, 2)),
    ):
        with pytest.raises(TypeError, match='KeypointBoxes'):
            operation(make_boxes())


def test_overlaps_match_horizontal_boxes():
    boxes = make_boxes()
    plain = HorizontalBoxes(boxes.tensor)
    assert torch.equal(KeypointBoxes.overlaps(boxes, boxes), HorizontalBoxes.overlaps(plain, plain))


def test_operations_accept_zero_boxes():
    boxes = KeypointBoxes(torch.zeros(0, 4), torch.zeros(0, 3, 2), torch.zeros(0, 3), FLIP)
    boxes.flip_((10, 10))
    boxes.project_(np.eye(3))
    boxes.rotate_((0, 0), 10)
    boxes.clip_((10, 10))
    assert boxes.tensor.shape == (0, 4) and boxes.visible.shape == (0, 3)
    assert boxes[np.zeros(0, dtype=bool)].keypoints.shape == boxes.keypoints.shape == (0, 3, 2)
