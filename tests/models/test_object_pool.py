import math

import pytest
import torch
from mmcv.ops import roi_align
from torch.autograd import gradcheck

from ccop_mm.models import ObjectPool
from ccop_mm.models.object_pool import roi_align_on_cpu


def reference_roi_align(features, image, box, stride, size):
    """Pools one box with plain loops: each bin is the mean of ceil(bin size) bilinear samples per axis (aligned)."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    height, width = features.shape[2:]
    bin_w, bin_h = (x2 - x1) / size, (y2 - y1) / size
    grid_w, grid_h = math.ceil(bin_w), math.ceil(bin_h)

    def sample(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(features.shape[1], dtype=features.dtype)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        cells = features[image]
        upper = cells[:, top, left] * (1 - dx) + cells[:, top, right] * dx
        lower = cells[:, bottom, left] * (1 - dx) + cells[:, bottom, right] * dx
        return upper * (1 - dy) + lower * dy

    result = torch.zeros(features.shape[1], size, size, dtype=features.dtype)
    for row in range(size):
        for column in range(size):
            points = [
                sample(y1 + (row + (i + 0.5) / grid_h) * bin_h, x1 + (column + (j + 0.5) / grid_w) * bin_w)
                for i in range(grid_h)
                for j in range(grid_w)
            ]
            result[:, row, column] = sum(points) / len(points)
    return result


def make_pyramid(generator, size=224, channels=3):
    return tuple(
        torch.randn(2, channels, size // s, size // s, generator=generator, dtype=torch.float64) for s in (4, 8, 16, 32)
    )


@pytest.mark.parametrize(
    'side, level', [(1, 0), (48, 0), (48.01, 1), (96, 1), (96.01, 2), (192, 2), (192.01, 3), (224, 3)]
)
def test_boxes_are_assigned_to_levels_by_size(side, level):
    # Thresholds of the reference implementation; equality belongs to the finer level.
    assert ObjectPool().levels(torch.tensor([[3.0, 5, 3 + side, 5 + side]])).item() == level


def test_each_box_is_pooled_from_its_level(generator):
    pool = ObjectPool(output_size=3)
    boxes = torch.tensor(
        [[0.0, 0, 200, 210], [10, 20, 40, 50], [30.5, 40.25, 120, 110], [5, 5, 20, 17], [60, 10, 224, 200]],
        dtype=torch.float64,
    )
    batch_index = torch.tensor([0, 0, 1, 1, 1])
    pyramid = make_pyramid(generator)
    rois = pool.plan(boxes, batch_index)
    pooled = pool(pyramid, rois)[rois.order.argsort()]
    for box, image, level, result in zip(boxes, batch_index, pool.levels(boxes), pooled, strict=True):
        expected = reference_roi_align(pyramid[level], image, box.tolist(), 4 * 2 ** level.item(), 3)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 4, 9])
def test_pooling_in_parts_gives_the_same_result(size, generator):
    corner = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 60
    side = torch.tensor([20.0, 30, 40, 60, 70, 150, 160, 20, 160], dtype=torch.float64)[:, None]  # no box on P5
    boxes, batch_index = torch.cat([corner, corner + side], dim=1), torch.arange(9) % 2
    pool, pyramid = ObjectPool(output_size=2), make_pyramid(generator)
    rois = pool.plan(boxes, batch_index)
    parts = rois.split(size)
    assert [len(part.rows) for part in parts] == [size] * (9 // size) + [9 % size] * (9 % size > 0)
    assert torch.equal(torch.cat([part.order for part in parts]), rois.order)
    assert torch.equal(torch.cat([pool(pyramid, part) for part in parts]), pool(pyramid, rois))


def test_split_without_boxes_returns_one_empty_part():
    (part,) = ObjectPool().plan(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).split(5)
    assert part.counts == [0, 0, 0, 0] and part.rows.shape == (0, 5)


def test_channels_last_features_give_the_same_result(generator):
    pool = ObjectPool()
    pyramid = tuple(level.requires_grad_() for level in make_pyramid(generator))
    channels_last = tuple(level.detach().to(memory_format=torch.channels_last).requires_grad_() for level in pyramid)
    rois = pool.plan(torch.tensor([[3.0, 4, 20, 30], [10, 20, 200, 190]]).double(), torch.tensor([0, 1]))
    pooled = pool(pyramid, rois)
    assert torch.equal(pool(channels_last, rois), pooled)
    pooled.square().sum().backward()
    pool(channels_last, rois).square().sum().backward()
    for plain, other in zip(pyramid, channels_last, strict=True):
        assert torch.equal(plain.grad, other.grad)


def test_levels_without_boxes_get_zero_gradients(generator):
    pool = ObjectPool()
    pyramid = tuple(level.requires_grad_() for level in make_pyramid(generator))
    rois = pool.plan(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    pooled = pool(pyramid, rois)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7)
    assert rois.counts == [0, 0, 0, 0]
    assert all(level.grad is not None and level.grad.abs().max() == 0 for level in pyramid)


def test_half_precision_features_are_pooled_in_float32(generator):
    pool = ObjectPool()
    pyramid = tuple(level.bfloat16() for level in make_pyramid(generator))
    boxes, batch_index = torch.tensor([[129.0, 130, 190, 188.5]]), torch.tensor([1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = pool(pyramid, pool.plan(boxes, batch_index))
    full = pool(tuple(level.float() for level in pyramid), pool.plan(boxes, batch_index))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0)


def test_invalid_level_sides_raise():
    with pytest.raises(ValueError, match=r'level_sides.*\(48, 96\)'):
        ObjectPool(level_sides=(48, 96))
    with pytest.raises(ValueError, match=r'level_sides.*\(96, 48, 192\)'):
        ObjectPool(level_sides=(96, 48, 192))


def test_levels_without_boxes_are_not_passed_to_roi_align(generator, monkeypatch):
    # mmcv's CUDA kernel cannot be launched with an empty grid.
    pool, counts = ObjectPool(), []
    pool_level = pool._pool

    def count_boxes(layer, features, rois):
        counts.append(len(rois))
        return pool_level(layer, features, rois)

    monkeypatch.setattr(pool, '_pool', count_boxes)
    pooled = pool(make_pyramid(generator), pool.plan(torch.tensor([[3.0, 4, 20, 30]]), torch.tensor([0])))
    assert pooled.shape == (1, 3, 7, 7)
    assert counts == [1]


def test_layers_of_mmcv_give_the_same_result(generator, monkeypatch):
    pool, pyramid = ObjectPool(), make_pyramid(generator)
    corner = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 180
    side = torch.rand(30, 2, generator=generator, dtype=torch.float64) ** 3 * 200 + 5
    boxes = torch.cat([corner, (corner + side).clamp(max=224)], dim=1)
    boxes[0] = torch.tensor([0, 0, 224, 224])
    rois = pool.plan(boxes, torch.arange(30) % 2)
    assert all(rois.counts)
    pooled = pool(pyramid, rois)
    monkeypatch.setattr(pool, '_pool', lambda layer, features, part: layer(features.contiguous(), part))
    torch.testing.assert_close(pooled, pool(pyramid, rois), rtol=0, atol=1e-12)


def random_rois(generator, count, images, size):
    """Samples boxes of any shape; some extend beyond the image, some have no area or are smaller than a cell."""
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size * 1.4 - 0.2 * size
    sides = size * torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3
    sides[::7, 0] = 0
    sides[1::7] = 0.3
    image = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + sides], dim=1)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('height, width, output_size', [(20, 14, 7), (5, 9, 3), (1, 1, 7), (1, 6, 1)])
def test_cpu_roi_align_has_the_values_and_gradients_of_mmcv(generator, height, width, output_size, layout):
    rois = random_rois(generator, 60, 3, 80)
    features = torch.randn(3, 5, height, width, generator=generator, dtype=torch.float64).to(memory_format=layout)
    ours, theirs = features.clone().requires_grad_(), features.contiguous().requires_grad_()
    result = roi_align_on_cpu(ours, rois, output_size, 0.25)
    expected = roi_align(theirs, rois, (output_size, output_size), 0.25, 0, 'avg', True)
    assert expected.abs().amax() > 0.5
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    result.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)


def test_cpu_roi_align_is_as_accurate_as_mmcv_in_float32(generator):
    features, rois = torch.randn(2, 8, 56, 56, generator=generator), random_rois(generator, 200, 2, 224).float()
    exact = roi_align(features.double(), rois.double(), (7, 7), 0.25, 0, 'avg', True)
    result = roi_align_on_cpu(features, rois, 7, 0.25)
    theirs = roi_align(features, rois, (7, 7), 0.25, 0, 'avg', True)
    assert result.dtype == torch.float32
    assert (result - exact).abs().max() < 2 * (theirs - exact).abs().max() + 1e-5


def test_cpu_roi_align_without_boxes_and_with_empty_boxes(generator):
    features = torch.randn(2, 4, 6, 6, generator=generator, requires_grad=True)
    none = roi_align_on_cpu(features, torch.zeros(0, 5), 7, 0.25)
    assert none.shape == (0, 4, 7, 7)
    empty = roi_align_on_cpu(features, torch.tensor([[1.0, 8, 8, 8, 20], [0, 9, 2, 4, 8]]), 7, 0.25)
    assert empty.shape == (2, 4, 7, 7) and not empty.any()
    (none.sum() + empty.sum()).backward()
    assert not features.grad.any()


def test_cpu_roi_align_gradients_match_finite_differences(generator):
    features = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 2, 15, 11], [0, -3, 0, 30, 9]], dtype=torch.float64)
    assert gradcheck(lambda maps: roi_align_on_cpu(maps, rois, 2, 0.25), features)
