import pytest
import torch
from mmcv.ops import roi_align
from torch.autograd import gradcheck

from ccop_mm.models.roi_align import roi_align_on_cpu


def random_rois(generator, count, images, size):
    """Boxes of any shape, of which some leave the view and some have no area or less than a cell."""
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size * 1.4 - 0.2 * size
    sides = size * torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3
    sides[::7, 0] = 0
    sides[1::7] = 0.3
    image = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + sides], dim=1)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('height, width, output_size', [(20, 14, 7), (5, 9, 3), (1, 1, 7), (1, 6, 1)])
def test_values_and_gradients_are_mmcvs(generator, height, width, output_size, layout):
    rois = random_rois(generator, 60, 3, 80)
    features = torch.randn(3, 5, height, width, generator=generator, dtype=torch.float64).to(memory_format=layout)
    ours, theirs = features.clone().requires_grad_(), features.contiguous().requires_grad_()
    found = roi_align_on_cpu(ours, rois, output_size, 0.25)
    expected = roi_align(theirs, rois, (output_size, output_size), 0.25, 0, 'avg', True)
    assert expected.abs().amax() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)


def test_float32_is_as_near_to_float64_as_mmcvs(generator):
    features, rois = torch.randn(2, 8, 56, 56, generator=generator), random_rois(generator, 200, 2, 224).float()
    exact = roi_align(features.double(), rois.double(), (7, 7), 0.25, 0, 'avg', True)
    found = roi_align_on_cpu(features, rois, 7, 0.25)
    theirs = roi_align(features, rois, (7, 7), 0.25, 0, 'avg', True)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 2 * (theirs - exact).abs().max() + 1e-5


def test_no_boxes_and_boxes_without_area(generator):
    features = torch.randn(2, 4, 6, 6, generator=generator, requires_grad=True)
    found = roi_align_on_cpu(features, torch.zeros(0, 5), 7, 0.25)
    assert found.shape == (0, 4, 7, 7)
    flat = roi_align_on_cpu(features, torch.tensor([[1.0, 8, 8, 8, 20], [0, 9, 2, 4, 8]]), 7, 0.25)
    assert flat.shape == (2, 4, 7, 7) and not flat.any()
    (found.sum() + flat.sum()).backward()
    assert not features.grad.any()


def test_gradients_by_differences(generator):
    features = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 2, 15, 11], [0, -3, 0, 30, 9]], dtype=torch.float64)
    assert gradcheck(lambda maps: roi_align_on_cpu(maps, rois, 2, 0.25), features)
