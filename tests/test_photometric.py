import math

import pytest
import torch
import torchvision.transforms.functional as tv

from ccop_mm import photometric as ph

#: Grey levels, as docs/performance.md states them: against torchvision on float tensors, and on uint8 tensors, where it
#: cuts off fractions: of the result, and of the grey values that contrast and saturation blend in with at most 0.4.
FLOAT_TOLERANCE = 0.01
UINT8_TOLERANCE = 1.41


def neutral(count):
    return torch.tensor(ph.NEUTRAL).repeat(count, 1)


def draw_params(count, generator):
    """MoCo v2's parameters, every one of them different."""
    params = neutral(count)
    for row in params:
        row[ph.ORDER] = torch.randperm(4, generator=generator).float()
        uniform = torch.rand(8, generator=generator)
        if uniform[0] < 0.8:
            row[ph.FACTORS] = uniform[1:5] * torch.tensor([0.8, 0.8, 0.8, 0.2]) + torch.tensor([0.6, 0.6, 0.6, -0.1])
        row[ph.GREY] = float(uniform[5] < 0.2)
        if uniform[6] < 0.5:
            row[ph.SIGMA] = 0.1 + 1.9 * uniform[7]
        if uniform[5] > 0.8:
            row[ph.THRESHOLD] = 128
    return params


def reference(image, row):
    """The same by torchvision, one image and one operation at a time; image (3, H, W) uint8, or float from 0 to 1."""
    functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for operation in row[ph.ORDER].long().tolist():
        factor = float(row[4 + operation])
        if factor != (0 if operation == ph.HUE else 1):
            image = functions[operation](image, factor)
    if row[ph.GREY]:
        image = tv.rgb_to_grayscale(image, 3)
    if row[ph.SIGMA] > 0:
        image = tv.gaussian_blur(image, 2 * math.ceil(4 * float(row[ph.SIGMA])) + 1, float(row[ph.SIGMA]))
    if row[ph.THRESHOLD] <= 255:
        image = tv.solarize(image, float(row[ph.THRESHOLD]) / (255 if image.is_floating_point() else 1))
    return image


def photos(generator, count=6, size=(40, 50)):
    """Smooth color gradients with noise and some grey, black and white: all of the color circle."""
    noise = torch.rand(count, 3, 6, 7, generator=generator)
    images = torch.nn.functional.interpolate(noise, size, mode='bicubic').mul(1.4).sub(0.2).clamp(0, 1)
    images[:, :, :6, :6] = 0
    images[:, :, :6, 6:12] = 1
    images[:, :, 6:12, :6] = 0.5
    return (255 * images + torch.rand(images.shape, generator=generator) * 8).clamp(0, 255).to(torch.uint8)


OPERATIONS = [
    (4 + ph.BRIGHTNESS, 0.6),
    (4 + ph.BRIGHTNESS, 1.4),
    (4 + ph.CONTRAST, 0.6),
    (4 + ph.CONTRAST, 1.4),
    (4 + ph.SATURATION, 0.6),
    (4 + ph.SATURATION, 1.4),
    (4 + ph.HUE, -0.1),
    (4 + ph.HUE, 0.1),
    (4 + ph.HUE, 0.5),
    (ph.GREY, 1),
    (ph.SIGMA, 0.1),
    (ph.SIGMA, 0.7),
    (ph.SIGMA, 2.0),
    (ph.THRESHOLD, 128),
]


@pytest.mark.parametrize('column, value', OPERATIONS)
def test_each_operation_is_torchvisions(generator, column, value):
    images = photos(generator)
    params = neutral(len(images))
    params[:, column] = value
    ours = ph.apply(images.float(), params)
    for image, row, result in zip(images, params, ours, strict=True):
        exact = 255 * reference(image.float() / 255, row)
        assert (result - exact).abs().max() < FLOAT_TOLERANCE
        assert (result - reference(image, row).float()).abs().max() < UINT8_TOLERANCE
    assert not torch.equal(ours, images.float()) or (column, value) == (ph.SIGMA, 0.1)


@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float64, 0.01), (torch.float32, 0.01), (torch.float16, 2.5), (torch.bfloat16, 20)]
)
def test_whole_chains_with_an_order_for_each_image(generator, dtype, tolerance):
    images, params = photos(generator, 24), draw_params(24, generator)
    assert len(params[:, ph.ORDER].unique(dim=0)) > 10
    ours = ph.apply(images.to(dtype), params)
    assert ours.dtype == dtype
    for image, row, result in zip(images, params, ours, strict=True):
        exact = 255 * reference(image.double() / 255, row)
        error = (result.double() - exact).abs()
        if row[ph.THRESHOLD] <= 255:  # what lies within the tolerance of the threshold may fall on either side of it
            near = (255 - 2 * exact).abs() < 2 * tolerance + 2
            error = error[~near]
        assert error.max() < tolerance
        assert error.mean() < tolerance / 10


def test_neutral_parameters_change_no_bit(generator):
    images = photos(generator).float()
    assert torch.equal(ph.apply(images.clone(), neutral(len(images))), images)


def test_the_others_of_a_batch_do_not_matter(generator):
    images, params = photos(generator, 12).float(), draw_params(12, generator)
    together = ph.apply(images.clone(), params)
    for number in range(12):
        alone = ph.apply(images[number : number + 1].clone(), params[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-3)


def test_images_smaller_than_the_kernel(generator):
    images, params = torch.rand(2, 3, 5, 7, generator=generator) * 255, neutral(2)
    params[:, ph.SIGMA] = 2
    blurred = ph.apply(images.clone(), params)
    assert blurred.shape == images.shape
    assert blurred.std() < images.std()


@pytest.mark.parametrize('size', [(40, 50), (9, 10)])  # the widest kernel, of 17 taps, reaches beyond the second
def test_both_ways_to_blur_are_torchvisions(generator, size):
    # One by convolutions, for GPUs, one by OpenCV, for CPUs: apply() takes the second here.
    images, sigma = photos(generator, 5, size).double(), torch.tensor([0.0, 0.01, 0.3, 1.1, 2.0])
    in_place = images.clone()
    ph.gaussian_blur_on_cpu(in_place, sigma, 8)
    convolved = ph.gaussian_blur(images, sigma, 8)
    for number, width in enumerate(sigma.tolist()):
        taps = 2 * math.ceil(4 * width) + 1
        exact = tv.gaussian_blur(images[number], taps, width) if width else images[number]
        torch.testing.assert_close(in_place[number], exact, rtol=0, atol=1e-4)
        torch.testing.assert_close(convolved[number], exact, rtol=0, atol=1e-4)


def test_blur_by_opencv_in_any_layout_and_precision(generator):
    images, sigma = photos(generator, 3).float(), torch.tensor([0.5, 0.0, 1.7])
    exact = ph.gaussian_blur(images, sigma, 7)
    last = images.clone(memory_format=torch.channels_last)
    ph.gaussian_blur_on_cpu(last, sigma, 7)
    torch.testing.assert_close(last, exact, rtol=0, atol=1e-3)
    assert torch.equal(last[1], images[1])
    for dtype, tolerance in ((torch.float16, 0.13), (torch.bfloat16, 1.01)):  # the last step of either, near 255
        half = images.to(dtype)
        ph.gaussian_blur_on_cpu(half, sigma, 7)
        torch.testing.assert_close(half.float(), exact, rtol=0, atol=tolerance)


def test_an_empty_batch():
    assert ph.apply(torch.zeros(0, 3, 8, 8), torch.zeros(0, ph.NUM_PARAMS)).shape == (0, 3, 8, 8)


def test_mean_and_variance_of_two_thousand_views(generator):
    sums = {name: torch.zeros(2, 3, dtype=torch.float64) for name in ('ours', 'theirs')}
    for _ in range(20):
        images, params = photos(generator, 100, (24, 24)), draw_params(100, generator)
        theirs = torch.stack([reference(image, row) for image, row in zip(images, params, strict=True)])
        for name, views in (('ours', ph.apply(images.float(), params)), ('theirs', theirs)):
            for power in (1, 2):
                sums[name][power - 1] += (views.double() ** power).mean(dim=(0, 2, 3)) / 20
    (mean, square), (their_mean, their_square) = sums['ours'], sums['theirs']
    torch.testing.assert_close(mean, their_mean, rtol=0.01, atol=0)
    torch.testing.assert_close(square - mean**2, their_square - their_mean**2, rtol=0.01, atol=0)
