import math

import pytest
import torch
import torchvision.transforms.functional as tv

from ccop_mm.models import batch_photometric as photometric

#: Tolerances in gray levels, as documented in docs/performance.md, against torchvision on float tensors and on uint8
#: tensors. On the latter torchvision truncates fractions of the result and of the grayscale image, which contrast and
#: saturation blend in with a weight of at most 0.4.
FLOAT_TOLERANCE = 0.01
UINT8_TOLERANCE = 1.41


def neutral_params(count):
    return torch.tensor(photometric.NEUTRAL).repeat(count, 1)


def sample_params(count, generator):
    """Samples different parameters for each image from the ranges of MoCo v2."""
    params = neutral_params(count)
    for row in params:
        row[photometric.ORDER] = torch.randperm(4, generator=generator).float()
        uniform = torch.rand(8, generator=generator)
        if uniform[0] < 0.8:
            scale, offset = torch.tensor([0.8, 0.8, 0.8, 0.2]), torch.tensor([0.6, 0.6, 0.6, -0.1])
            row[photometric.FACTORS] = uniform[1:5] * scale + offset
        row[photometric.GRAY] = float(uniform[5] < 0.2)
        if uniform[6] < 0.5:
            row[photometric.SIGMA] = 0.1 + 1.9 * uniform[7]
        if uniform[5] > 0.8:
            row[photometric.THRESHOLD] = 128
    return params


def apply_with_torchvision(image, row):
    """Augments one image with torchvision, one operation at a time.

    Args:
        image (Tensor): ``(3, H, W)``, uint8 or floating point in [0, 1].
        row (Tensor): Parameters of the image.
    """
    functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for operation in row[photometric.ORDER].long().tolist():
        factor = float(row[4 + operation])
        if factor != (0 if operation == photometric.HUE else 1):
            image = functions[operation](image, factor)
    if row[photometric.GRAY]:
        image = tv.rgb_to_grayscale(image, 3)
    sigma = float(row[photometric.SIGMA])
    if sigma > 0:
        image = tv.gaussian_blur(image, 2 * math.ceil(4 * sigma) + 1, sigma)
    if row[photometric.THRESHOLD] <= 255:
        image = tv.solarize(image, float(row[photometric.THRESHOLD]) / (255 if image.is_floating_point() else 1))
    return image


def random_images(generator, count=6, size=(40, 50)):
    """Smooth color gradients with noise and patches of gray, black and white, which cover all hues."""
    noise = torch.rand(count, 3, 6, 7, generator=generator)
    images = torch.nn.functional.interpolate(noise, size, mode='bicubic').mul(1.4).sub(0.2).clamp(0, 1)
    images[:, :, :6, :6] = 0
    images[:, :, :6, 6:12] = 1
    images[:, :, 6:12, :6] = 0.5
    return (255 * images + torch.rand(images.shape, generator=generator) * 8).clamp(0, 255).to(torch.uint8)


OPERATIONS = [
    (4 + photometric.BRIGHTNESS, 0.6),
    (4 + photometric.BRIGHTNESS, 1.4),
    (4 + photometric.CONTRAST, 0.6),
    (4 + photometric.CONTRAST, 1.4),
    (4 + photometric.SATURATION, 0.6),
    (4 + photometric.SATURATION, 1.4),
    (4 + photometric.HUE, -0.1),
    (4 + photometric.HUE, 0.1),
    (4 + photometric.HUE, 0.5),
    (photometric.GRAY, 1),
    (photometric.SIGMA, 0.1),
    (photometric.SIGMA, 0.7),
    (photometric.SIGMA, 2.0),
    (photometric.THRESHOLD, 128),
]


@pytest.mark.parametrize('column, value', OPERATIONS)
def test_each_operation_matches_torchvision(generator, column, value):
    images = random_images(generator)
    params = neutral_params(len(images))
    params[:, column] = value
    ours = photometric.apply(images.float(), params)
    for image, row, result in zip(images, params, ours, strict=True):
        exact = 255 * apply_with_torchvision(image.float() / 255, row)
        assert (result - exact).abs().max() < FLOAT_TOLERANCE
        assert (result - apply_with_torchvision(image, row).float()).abs().max() < UINT8_TOLERANCE
    changed = (ours - images.float()).abs().max() > 1e-3
    assert changed == ((column, value) != (photometric.SIGMA, 0.1))  # the weight of a neighbor is 2e-22 at 0.1 px


@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float64, 0.01), (torch.float32, 0.01), (torch.float16, 2.5), (torch.bfloat16, 20)]
)
def test_all_operations_in_the_order_of_each_image_match_torchvision(generator, dtype, tolerance):
    images, params = random_images(generator, 24), sample_params(24, generator)
    assert len(params[:, photometric.ORDER].unique(dim=0)) > 10
    ours = photometric.apply(images.to(dtype), params)
    assert ours.dtype == dtype
    for image, row, result in zip(images, params, ours, strict=True):
        exact = 255 * apply_with_torchvision(image.double() / 255, row)
        error = (result.double() - exact).abs()
        if row[photometric.THRESHOLD] <= 255:  # within the tolerance of the threshold, a value may be on either side
            near_threshold = (255 - 2 * exact).abs() < 2 * tolerance + 2
            error = error[~near_threshold]
        assert error.max() < tolerance
        assert error.mean() < tolerance / 10


def test_neutral_parameters_leave_images_bitwise_unchanged(generator):
    images = random_images(generator).float()
    assert torch.equal(photometric.apply(images.clone(), neutral_params(len(images))), images)


def test_result_is_independent_of_other_images_in_the_batch(generator):
    images, params = random_images(generator, 12).float(), sample_params(12, generator)
    together = photometric.apply(images.clone(), params)
    for number in range(12):
        alone = photometric.apply(images[number : number + 1].clone(), params[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-3)


def test_images_smaller_than_the_blur_kernel(generator):
    images, params = torch.rand(2, 3, 5, 7, generator=generator) * 255, neutral_params(2)
    params[:, photometric.SIGMA] = 2
    blurred = photometric.apply(images.clone(), params)
    assert blurred.shape == images.shape
    assert blurred.std() < images.std()


@pytest.mark.parametrize('size', [(40, 50), (9, 10)])  # the widest kernel, 17 taps, exceeds the second size
def test_both_blur_implementations_match_torchvision(generator, size):
    images, sigma = random_images(generator, 5, size).double(), torch.tensor([0.0, 0.01, 0.3, 1.1, 2.0])
    on_cpu = images.clone()
    photometric.gaussian_blur_on_cpu(on_cpu, sigma, 8)
    convolved = photometric.gaussian_blur(images, sigma, 8)
    for number, width in enumerate(sigma.tolist()):
        taps = 2 * math.ceil(4 * width) + 1
        exact = tv.gaussian_blur(images[number], taps, width) if width else images[number]
        torch.testing.assert_close(on_cpu[number], exact, rtol=0, atol=1e-4)
        torch.testing.assert_close(convolved[number], exact, rtol=0, atol=1e-4)


def test_blur_on_cpu_in_any_memory_format_and_precision(generator):
    images, sigma = random_images(generator, 3).float(), torch.tensor([0.5, 0.0, 1.7])
    exact = photometric.gaussian_blur(images, sigma, 7)
    channels_last = images.clone(memory_format=torch.channels_last)
    photometric.gaussian_blur_on_cpu(channels_last, sigma, 7)
    torch.testing.assert_close(channels_last, exact, rtol=0, atol=1e-3)
    assert torch.equal(channels_last[1], images[1])
    for dtype, tolerance in ((torch.float16, 0.13), (torch.bfloat16, 1.01)):  # resolution of either dtype near 255
        half = images.to(dtype)
        photometric.gaussian_blur_on_cpu(half, sigma, 7)
        torch.testing.assert_close(half.float(), exact, rtol=0, atol=tolerance)


def test_empty_batch():
    images = photometric.apply(torch.zeros(0, 3, 8, 8), torch.zeros(0, photometric.NUM_PARAMS))
    assert images.shape == (0, 3, 8, 8)


@pytest.mark.slow
def test_mean_and_variance_match_torchvision(generator):
    sums = {name: torch.zeros(2, 3, dtype=torch.float64) for name in ('ours', 'theirs')}
    for _ in range(20):
        images, params = random_images(generator, 100, (24, 24)), sample_params(100, generator)
        theirs = torch.stack([apply_with_torchvision(image, row) for image, row in zip(images, params, strict=True)])
        for name, views in (('ours', photometric.apply(images.float(), params)), ('theirs', theirs)):
            for power in (1, 2):
                sums[name][power - 1] += (views.double() ** power).mean(dim=(0, 2, 3)) / 20
    (mean, square), (their_mean, their_square) = sums['ours'], sums['theirs']
    torch.testing.assert_close(mean, their_mean, rtol=0.01, atol=0)
    torch.testing.assert_close(square - mean**2, their_square - their_mean**2, rtol=0.01, atol=0)
