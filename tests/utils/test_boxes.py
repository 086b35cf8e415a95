import math

import pytest
import torch

from ccop_mm.utils import boxes as box_ops


def random_boxes(count, generator, size=100.0):
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * size
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def test_iou_equals_plain_loops(generator):
    a, b = random_boxes(23, generator), random_boxes(17, generator)
    expected = torch.tensor([[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(box_ops.pairwise_iou(a, b), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(box_ops.aligned_iou(a[:17], b), expected[:17].diagonal(), rtol=0, atol=1e-12)


@pytest.mark.parametrize('box', [[5.0, 5, 5, 9], [5.0, 5, 9, 5], [9.0, 9, 5, 5], [0.0, 0, 0, 0]])
def test_box_without_area_has_iou_zero_and_finite_gradient(box):
    empty = torch.tensor([box], requires_grad=True)
    other = torch.tensor([[0.0, 0, 10, 10]])
    iou = box_ops.aligned_iou(empty, other) + box_ops.aligned_iou(empty, empty)
    iou.sum().backward()
    assert iou.item() == 0
    assert torch.isfinite(empty.grad).all()


def test_crop_and_flip_move_every_pixel_as_the_image_does(generator):
    # A box drawn as a filled image goes through the same crop and flip; its bounds must be the box's.
    image = torch.zeros(60, 80)
    image[20:35, 30:52] = 1
    cut = image[10:50, 20:70]
    seen = box_ops.crop_and_resize(torch.tensor([30.0, 20, 52, 35]), torch.tensor([20.0, 10, 70, 50]), (40, 50))
    flipped = box_ops.flip_horizontal(seen, 50)
    rows, columns = cut.flip(1).nonzero(as_tuple=True)
    drawn = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
    assert flipped.tolist() == drawn


def test_resize_scales_each_axis_by_itself():
    seen = box_ops.crop_and_resize(torch.tensor([10.0, 10, 20, 30]), torch.tensor([0.0, 0, 50, 100]), (200, 200))
    assert seen.tolist() == [40, 20, 80, 60]


def test_clip_keeps_boxes_inside():
    boxes = torch.tensor([[-5.0, -1, 300, 20], [10.0, 250, 20, 260]])
    assert box_ops.clip(boxes, (100, 200)).tolist() == [[0, 0, 200, 20], [10, 100, 20, 100]]


@pytest.mark.parametrize('anchor', box_ops.ANCHORS)
def test_jitter_is_equation_7(anchor, generator):
    boxes = random_boxes(11, generator)
    noise = torch.rand(11, 4, generator=generator, dtype=torch.float64) * 2 - 1
    for box, (sx, sy, sw, sh), result in zip(
        boxes.tolist(), noise.tolist(), box_ops.jitter(boxes, noise, anchor).tolist(), strict=True
    ):
        w, h = box[2] - box[0], box[3] - box[1]
        new_w, new_h = w * math.exp(sw), h * math.exp(sh)
        if anchor == 'top_left':
            x, y = sx * w + box[0], sy * h + box[1]
        else:
            x = (box[0] + box[2]) / 2 + sx * w - new_w / 2
            y = (box[1] + box[3]) / 2 + sy * h - new_h / 2
        assert result == pytest.approx([x, y, x + new_w, y + new_h], abs=1e-9)


def test_jitter_refuses_an_unknown_anchor():
    with pytest.raises(ValueError, match='anchor must be one of'):
        box_ops.jitter(torch.zeros(1, 4), torch.zeros(1, 4), 'middle')
