import math

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from ccop_mm.detection.keypoints import decode_keypoints, encode_keypoints


def random_rois(generator, count):
    corner = torch.rand(count, 2, generator=generator) * 100
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 90), dim=1)


def random_keypoints(generator, rois, num_keypoints):
    """Returns keypoints inside and around the RoIs, some exactly on an edge, and their visibility."""
    share = torch.rand(len(rois), num_keypoints, 2, generator=generator) * 1.4 - 0.2
    share[share > 1.15] = 1
    share[share < -0.15] = 0
    corner, opposite = rois[:, None, :2], rois[:, None, 2:]
    # corner + 1 * extent may differ from the opposite corner by rounding.
    keypoints = torch.where(share == 1, opposite, corner + share * (opposite - corner))
    return keypoints, (torch.rand(len(rois), num_keypoints, generator=generator) < 0.7).float()


def cubic(t, a=-0.75):
    """Evaluates the bicubic kernel (Keys 1981) with the constant of PyTorch and OpenCV."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resize_matrix(source, target):
    """Returns the weights (target, source) of a 1-D bicubic resize with border replication."""
    matrix = np.zeros((target, source))
    for row in range(target):
        center = (row + 0.5) * source / target - 0.5
        for tap in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[row, min(max(tap, 0), source - 1)] += cubic(center - tap)
    return matrix


@pytest.mark.parametrize('size', [56, 7])
def test_encoding_matches_torchvision(generator, size):
    rois = random_rois(generator, 200)
    keypoints, visible = random_keypoints(generator, rois, 17)
    cells, valid = encode_keypoints(keypoints, visible, rois, size)
    expected_cells, expected_valid = keypoints_to_heatmap(torch.cat((keypoints, visible[..., None]), -1), rois, size)
    assert torch.equal(cells, expected_cells)
    assert torch.equal(valid, expected_valid.bool())
    on_edge = (keypoints == rois[:, None, 2:]).any(-1)
    assert valid[on_edge].any() and valid.any() and not valid.all()


def test_encoding_matches_a_loop_over_keypoints(generator):
    rois = random_rois(generator, 20).double()
    keypoints = rois[:, None, :2] + torch.rand(20, 5, 2, generator=generator) * 80
    cells, valid = encode_keypoints(keypoints, torch.ones(20, 5), rois, 56)
    for roi, points, row, row_valid in zip(
        rois.tolist(), keypoints.tolist(), cells.tolist(), valid.tolist(), strict=True
    ):
        for (x, y), cell, is_valid in zip(points, row, row_valid, strict=True):
            column = math.floor((x - roi[0]) / (roi[2] - roi[0]) * 56)
            row_index = math.floor((y - roi[1]) / (roi[3] - roi[1]) * 56)
            inside = 0 <= column < 56 and 0 <= row_index < 56
            assert (cell, is_valid) == ((row_index * 56 + column, True) if inside else (0, False))


@pytest.mark.parametrize('roi', [(5, 5, 5, 9), (5, 5, 9, 5), (5, 5, 5, 5), (9, 9, 5, 5)])
def test_roi_without_area_has_no_valid_keypoint(roi):
    keypoints = torch.tensor([[[5.0, 5.0], [9.0, 9.0], [6.0, 7.0]]])
    cells, valid = encode_keypoints(keypoints, torch.ones(1, 3), torch.tensor([roi], dtype=torch.float32), 56)
    assert not valid.any() and not cells.any()


def test_zero_rois():
    cells, valid = encode_keypoints(torch.zeros(0, 17, 2), torch.zeros(0, 17), torch.zeros(0, 4), 56)
    assert cells.shape == valid.shape == (0, 17)
    points, peaks, scores = decode_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4))
    assert points.shape == (0, 17, 2) and peaks.shape == scores.shape == (0, 17)


def test_decoding_matches_torchvision(generator):
    rois = random_rois(generator, 12)
    rois[0, 2:] = rois[0, :2] + 0.3  # smaller than a pixel
    logits = torch.randn(12, 5, 56, 56, generator=generator) * 4
    points, peaks, _ = decode_keypoints(logits, rois)
    expected, expected_peaks = heatmaps_to_keypoints(logits, rois)
    torch.testing.assert_close(points, expected[..., :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(peaks, expected_peaks, rtol=0, atol=1e-5)


def test_decoding_matches_a_float64_matrix_implementation(generator):
    rois = random_rois(generator, 4)
    logits = torch.randn(4, 3, 14, 14, generator=generator) * 3
    points, peaks, scores = decode_keypoints(logits, rois)
    for index, (x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        width, height = math.ceil(x2 - x1), math.ceil(y2 - y1)
        for keypoint in range(3):
            heatmap = logits[index, keypoint].double().numpy()
            resized = resize_matrix(14, height) @ heatmap @ resize_matrix(14, width).T
            row, column = np.unravel_index(resized.argmax(), resized.shape)
            x, y = x1 + (column + 0.5) * (x2 - x1) / width, y1 + (row + 0.5) * (y2 - y1) / height
            assert points[index, keypoint].tolist() == pytest.approx([x, y], abs=1e-4)
            assert peaks[index, keypoint].item() == pytest.approx(resized.max(), abs=1e-4)
            score = min(math.exp(resized.max()) / np.exp(heatmap).sum(), 1)
            assert scores[index, keypoint].item() == pytest.approx(score, rel=1e-4)


def test_encoding_and_decoding_moves_a_keypoint_by_at_most_half_a_cell(generator):
    rois = random_rois(generator, 30)
    keypoints = rois[:, None, :2] + torch.rand(30, 4, 2, generator=generator) * (rois[:, 2:] - rois[:, :2])[:, None]
    cells, valid = encode_keypoints(keypoints, torch.ones(30, 4), rois, 56)
    assert valid.all()
    # A smooth peak at the target cell: resizing to a small RoI could skip a single high cell.
    row, column = torch.meshgrid(torch.arange(56), torch.arange(56), indexing='ij')
    squares = (row - cells[..., None, None] // 56) ** 2 + (column - cells[..., None, None] % 56) ** 2
    points, _, scores = decode_keypoints(-0.1 * squares.float(), rois)
    # Half a cell plus half a pixel of the resized heatmap.
    allowed = 0.5 * (rois[:, 2:] - rois[:, :2]) / 56 + 0.5
    assert ((points - keypoints).abs() <= allowed[:, None] + 1e-3).all()
    assert (scores > 0).all() and (scores < 0.1).all()  # the peak is spread over several cells
