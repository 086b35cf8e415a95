import math

import pytest
import torch

from ccop_mm.models import ObjectPool


def slow_roi_align(level, image, box, stride, size):
    """Plain loops: average of bilinear samples, ceil(cell side) of them per axis (aligned, adaptive)."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    height, width = level.shape[2:]
    cell_w, cell_h = (x2 - x1) / size, (y2 - y1) / size
    grid_w, grid_h = math.ceil(cell_w), math.ceil(cell_h)

    def sample(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(level.shape[1], dtype=level.dtype)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        at = level[image]
        upper = at[:, top, left] * (1 - dx) + at[:, top, right] * dx
        lower = at[:, bottom, left] * (1 - dx) + at[:, bottom, right] * dx
        return upper * (1 - dy) + lower * dy

    result = torch.zeros(level.shape[1], size, size, dtype=level.dtype)
    for row in range(size):
        for column in range(size):
            points = [
                sample(y1 + (row + (i + 0.5) / grid_h) * cell_h, x1 + (column + (j + 0.5) / grid_w) * cell_w)
                for i in range(grid_h)
                for j in range(grid_w)
            ]
            result[:, row, column] = sum(points) / len(points)
    return result


def pyramid_of(generator, size=224, channels=3):
    return tuple(
        torch.randn(2, channels, size // s, size // s, generator=generator, dtype=torch.float64) for s in (4, 8, 16, 32)
    )


@pytest.mark.parametrize(
    'side, level', [(1, 0), (48, 0), (48.01, 1), (96, 1), (96.01, 2), (192, 2), (192.01, 3), (224, 3)]
)
def test_level_by_size(side, level):
    # Of the released code; equality belongs to the finer level.
    assert ObjectPool().levels(torch.tensor([[3.0, 5, 3 + side, 5 + side]])).item() == level


def test_pools_each_box_from_its_level_in_the_given_order(generator):
    pool = ObjectPool(output_size=3)
    boxes = torch.tensor(
        [[0.0, 0, 200, 210], [10, 20, 40, 50], [30.5, 40.25, 120, 110], [5, 5, 20, 17], [60, 10, 224, 200]],
        dtype=torch.float64,
    )
    batch_index = torch.tensor([0, 0, 1, 1, 1])
    pyramid = pyramid_of(generator)
    rois = pool.plan(boxes, batch_index)
    pooled = pool(pyramid, rois)[rois.order.argsort()]
    for box, image, level, result in zip(boxes, batch_index, pool.levels(boxes), pooled, strict=True):
        expected = slow_roi_align(pyramid[level], image, box.tolist(), 4 * 2 ** level.item(), 3)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [1, 2, 4, 9])
def test_parts_pool_the_same(size, generator):
    corner = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 60
    side = torch.tensor([20.0, 30, 40, 60, 70, 150, 160, 20, 160], dtype=torch.float64)[:, None]  # no P5
    boxes, batch_index = torch.cat([corner, corner + side], dim=1), torch.arange(9) % 2
    pool, pyramid = ObjectPool(output_size=2), pyramid_of(generator)
    rois = pool.plan(boxes, batch_index)
    parts = rois.split(size)
    assert [len(part.rows) for part in parts] == [size] * (9 // size) + [9 % size] * (9 % size > 0)
    assert torch.equal(torch.cat([part.order for part in parts]), rois.order)
    assert torch.equal(torch.cat([pool(pyramid, part) for part in parts]), pool(pyramid, rois))


def test_no_boxes_are_one_part():
    (part,) = ObjectPool().plan(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).split(5)
    assert part.counts == [0, 0, 0, 0] and part.rows.shape == (0, 5)


def test_channels_last_features_are_pooled_alike(generator):
    pool = ObjectPool()
    pyramid = tuple(level.requires_grad_() for level in pyramid_of(generator))
    turned = tuple(level.detach().to(memory_format=torch.channels_last).requires_grad_() for level in pyramid)
    rois = pool.plan(torch.tensor([[3.0, 4, 20, 30], [10, 20, 200, 190]]).double(), torch.tensor([0, 1]))
    pooled = pool(pyramid, rois)
    assert torch.equal(pool(turned, rois), pooled)
    pooled.square().sum().backward()
    pool(turned, rois).square().sum().backward()
    for plain, other in zip(pyramid, turned, strict=True):
        assert torch.equal(plain.grad, other.grad)


def test_levels_without_boxes_stay_in_the_graph(generator):
    pool = ObjectPool()
    pyramid = tuple(level.requires_grad_() for level in pyramid_of(generator))
    rois = pool.plan(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    pooled = pool(pyramid, rois)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7)
    assert rois.counts == [0, 0, 0, 0]
    assert all(level.grad is not None and level.grad.abs().max() == 0 for level in pyramid)


def test_half_precision_features_are_pooled_in_float32(generator):
    pool = ObjectPool()
    pyramid = tuple(level.bfloat16() for level in pyramid_of(generator))
    boxes, batch_index = torch.tensor([[129.0, 130, 190, 188.5]]), torch.tensor([1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = pool(pyramid, pool.plan(boxes, batch_index))
    full = pool(tuple(level.float() for level in pyramid), pool.plan(boxes, batch_index))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0)


def test_levels_and_thresholds_must_match():
    with pytest.raises(ValueError, match='4 levels need 3 rising level_sides'):
        ObjectPool(level_sides=(48, 96))


def test_the_kernel_is_never_asked_for_no_box(generator, monkeypatch):
    # Its CUDA launcher would be given a grid of no blocks.
    pool, asked = ObjectPool(), []
    pool_one = pool._pool
    monkeypatch.setattr(
        pool, '_pool', lambda layer, level, rois: (asked.append(len(rois)), pool_one(layer, level, rois))[1]
    )
    pooled = pool(pyramid_of(generator), pool.plan(torch.tensor([[3.0, 4, 20, 30]]), torch.tensor([0])))
    assert pooled.shape == (1, 3, 7, 7)
    assert asked == [1]


def test_mmcvs_layers_pool_the_same(generator, monkeypatch):
    pool, pyramid = ObjectPool(), pyramid_of(generator)
    corner = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 180
    side = torch.rand(30, 2, generator=generator, dtype=torch.float64) ** 3 * 200 + 5
    boxes = torch.cat([corner, (corner + side).clamp(max=224)], dim=1)
    boxes[0] = torch.tensor([0, 0, 224, 224])
    rois = pool.plan(boxes, torch.arange(30) % 2)
    assert all(rois.counts)
    pooled = pool(pyramid, rois)
    monkeypatch.setattr(pool, '_pool', lambda layer, level, part: layer(level.contiguous(), part))
    torch.testing.assert_close(pooled, pool(pyramid, rois), rtol=0, atol=1e-12)
