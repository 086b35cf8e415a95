"""Photometric augmentation of a whole batch with individual parameters for each image.

All functions are pure functions on tensors on any device. Images are RGB ``(B, 3, H, W)``, floating point, in [0, 255].
The formulas are those of torchvision's functional transforms, which take one scalar parameter per batch. kornia takes
one parameter per image, but applies the operations of color jitter in the same order to all images of a batch.

No function copies data from the device to the host. Decisions on the host, such as which images need a hue shift, are
made from the parameters, which the data loader provides on the CPU.
"""

import math

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers of the color jitter operations in torchvision's ``ColorJitter.get_params``.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

#: Columns of the parameters of an image, float32 ``(NUM_PARAMS,)``:
#: ORDER, four columns: the operation that is applied first, second, third and last.
#: FACTORS, four columns: factor of each operation, indexed by the numbers above; 1, 1, 1, 0 have no effect.
#: GRAY: 1 to convert to grayscale, otherwise 0.
#: SIGMA: standard deviation of the blur in pixels, 0 for no blur.
#: THRESHOLD: solarization threshold in gray levels, above 255 for no solarization.
ORDER, FACTORS, GRAY, SIGMA, THRESHOLD = slice(0, 4), slice(4, 8), 8, 9, 10
NUM_PARAMS = 11

#: Parameters that leave an image unchanged.
NEUTRAL = (0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 256.0)

#: ITU-R BT.601 luma weights of red, green and blue, with torchvision's rounding (their sum is 0.9999).
LUMA = (0.2989, 0.587, 0.114)

#: Hue at which red, green and blue, respectively, are minimal, in sextants from red.
MINIMUM_HUES = (3.0, 5.0, 1.0)

#: Radius of a blur kernel in standard deviations. The truncated weight is 6e-5, which is at most 0.02 gray levels.
KERNEL_REACH = 4.0


def luma(images: Tensor) -> Tensor:
    """Converts RGB images to grayscale: ``(B, 3, H, W) -> (B, 1, H, W)``."""
    gray = images[:, 0:1] * LUMA[0]
    return gray.add_(images[:, 1:2], alpha=LUMA[1]).add_(images[:, 2:3], alpha=LUMA[2])


def blend(images: Tensor, factor: Tensor, use_gray: Tensor, use_mean: Tensor) -> Tensor:
    """Computes ``factor * image + (1 - factor) * base``, clamped to [0, 255].

    The base is black for brightness, the mean of the grayscale image for contrast, and the grayscale image for
    saturation and, with a factor of 0, for conversion to grayscale.

    Args:
        images (Tensor): ``(B, 3, H, W)``.
        factor (Tensor): ``(B, 1, 1, 1)``; 1 leaves an image unchanged to the last bit.
        use_gray (Tensor): ``(B, 1, 1, 1)``, 1 where the base is the grayscale image, otherwise 0.
        use_mean (Tensor): ``(B, 1, 1, 1)``, 1 where the base is the mean of the grayscale image, otherwise 0.

    Returns:
        Tensor: New tensor ``(B, 3, H, W)``.
    """
    base = luma(images)
    mean = base.mean(dim=(2, 3), keepdim=True)
    base.mul_(use_gray).add_(mean * use_mean).mul_(1 - factor)
    return torch.addcmul(base, images, factor).clamp_(0, 255)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shifts the hue at constant value and chroma: torchvision's conversion to HSV and back in closed form.

    With hue h in sextants, value v and chroma c, a channel is ``v - c * clamp(2 - d, 0, 1)``, where d is the distance
    on the circle of six sextants between h and the hue at which that channel is minimal.

    Args:
        images (Tensor): ``(B, 3, H, W)``, any range.
        shift (Tensor): ``(B, 1, 1)`` in [-0.5, 0.5], as torchvision's ``hue_factor``: 1 is a full turn.

    Returns:
        Tensor: New tensor ``(B, 3, H, W)``.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue in sextants times chroma; lerp with weights 0 and 1 replaces the slower torch.where.
    hue = torch.sub(red, green).add_(chroma, alpha=4)
    hue.lerp_(torch.sub(blue, red).add_(chroma, alpha=2), value.clone().eq_(green))
    hue.lerp_(green - blue, value.clone().eq_(red))
    # Where chroma is 0, the dividend is 0 as well, so that gray pixels do not change.
    hue.div_(chroma.clamp(min=1e-4)).add_(6 * shift)
    out = torch.empty_like(images)
    for channel, minimum_hue in enumerate(MINIMUM_HUES):
        distance = hue - minimum_hue
        distance.sub_((distance / 6).round_(), alpha=6).abs_()  # circular distance; faster than remainder()
        torch.addcmul(value, chroma, distance.neg_().add_(2).clamp_(0, 1), value=-1, out=out[:, channel])
    return out


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Computes normalized Gaussian kernels, ``(B,) -> (B, 2 * radius + 1)``; a sigma of 0 yields the identity."""
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=sigma.device)
    sigma = sigma.float()[:, None]
    # Truncate by the sigma of each image, so that the result does not depend on the other images of the batch.
    within = taps.abs() <= (KERNEL_REACH * sigma).ceil()
    weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)) ** 2) * within
    return weights / weights.sum(dim=1, keepdim=True)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blurs each image with its own sigma by a grouped convolution, with reflected borders as in torchvision.

    Args:
        images (Tensor): ``(B, 3, H, W)``.
        sigma (Tensor): ``(B,)`` in pixels; 0 leaves an image unchanged.
        radius (int): Radius of all kernels, smaller than H and W.

    Returns:
        Tensor: New tensor ``(B, 3, H, W)``.
    """
    batch, channels, height, width = images.shape
    kernels = gaussian_kernels(sigma, radius).to(images.dtype).repeat_interleave(channels, 0)  # (B * 3, K)
    groups = batch * channels
    # (B, 3, H, W) -> (1, B * 3, H, W): one convolution group for each channel of each image
    padded = F.pad(images, (radius, radius, 0, 0), mode='reflect').view(1, groups, height, width + 2 * radius)
    rows = F.conv2d(padded, kernels[:, None, None, :], groups=groups)
    padded = F.pad(rows, (0, 0, radius, radius), mode='reflect')
    return F.conv2d(padded, kernels[:, None, :, None], groups=groups).view(images.shape)


def gaussian_blur_on_cpu(images: Tensor, sigma: Tensor, radius: int) -> None:
    """Blurs each image in place with its own sigma by OpenCV, which is faster on a CPU than :func:`gaussian_blur`.

    Args:
        images (Tensor): ``(B, 3, H, W)`` on the CPU.
        sigma (Tensor): ``(B,)`` in pixels; images with 0 are skipped.
        radius (int): Radius of the widest kernel, smaller than H and W.
    """
    kernels = gaussian_kernels(sigma, radius).numpy()
    for row in sigma.nonzero().flatten().tolist():
        kernel = kernels[row][kernels[row] > 0]
        for plane in images[row]:  # (H, W)
            supported = plane.element_size() > 2  # OpenCV has no half precision
            pixels = (plane if supported else plane.float()).numpy()
            blurred = cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
            if supported:
                pixels[...] = blurred  # assign in numpy: torch would start its thread pool for each plane
            else:
                plane.copy_(torch.from_numpy(blurred))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts all values that are at least ``threshold`` ``(B, 1, 1, 1)``."""
    return torch.where(images >= threshold, 255 - images, images)


def apply(images: Tensor, params: Tensor) -> Tensor:
    """Applies color jitter in the order of each image, then grayscale conversion, blur and solarization.

    Args:
        images (Tensor): ``(B, 3, H, W)`` RGB, floating point in [0, 255], on any device. May be modified in place.
        params (Tensor): ``(B, NUM_PARAMS)`` float32 on the CPU, in the layout of :data:`ORDER` to :data:`THRESHOLD`.

    Returns:
        Tensor: ``(B, 3, H, W)`` of the dtype of ``images``.
    """
    order = params[:, ORDER].long()
    factors = params[:, FACTORS].gather(1, order)  # (B, 4): factor of the first, second, ... operation
    shifts = params[:, FACTORS.start + HUE]
    # For each of the four positions: the images whose hue is shifted there.
    hue_rows = [((order[:, position] == HUE) & (shifts != 0)).nonzero().flatten() for position in range(4)]
    columns = [
        torch.where(order == HUE, 1.0, factors),
        (order == SATURATION).float(),
        (order == CONTRAST).float(),
        params[:, [FACTORS.start + HUE, GRAY, SIGMA, THRESHOLD]],
    ]
    # Two non-blocking transfers for the whole batch.
    values = _to_device(torch.cat(columns, dim=1), images.device)  # (B, 16)
    rows = _to_device(torch.cat(hue_rows), images.device).split([len(part) for part in hue_rows])
    weights = values[:, :12].to(images.dtype).view(-1, 3, 4, 1, 1, 1)  # (B, 12) -> (B, 3, 4, 1, 1, 1)
    neutral = (columns[0] == 1).all(0).tolist()
    for position in range(4):
        if not neutral[position]:
            images = blend(images, *weights[:, :, position].unbind(1))
        if len(hue_rows[position]):
            hue = values[rows[position], 12].to(images.dtype)[:, None, None]
            images[rows[position]] = shift_hue(images[rows[position]], hue)
    return _apply_after_jitter(images, params, values[:, 13:])


def _apply_after_jitter(images: Tensor, params: Tensor, values: Tensor) -> Tensor:
    """Applies grayscale conversion, blur and solarization.

    Args:
        images (Tensor): ``(B, 3, H, W)``.
        params (Tensor): ``(B, NUM_PARAMS)`` on the CPU.
        values (Tensor): ``(B, 3)``, the columns GRAY, SIGMA and THRESHOLD of ``params`` on the device of the images.
    """
    gray, sigma, threshold = values.unbind(1)
    if params[:, GRAY].any():
        factor = (1 - gray).to(images.dtype)[:, None, None, None]
        images = blend(images, factor, torch.ones_like(factor), torch.zeros_like(factor))
    max_sigma = float(params[:, SIGMA].max()) if len(params) else 0.0
    if max_sigma > 0:
        radius = min(math.ceil(KERNEL_REACH * max_sigma), images.shape[2] - 1, images.shape[3] - 1)
        if images.device.type == 'cpu':
            gaussian_blur_on_cpu(images, sigma, radius)
        else:  # blur all images: for a varying number of them cuDNN would benchmark its algorithms again
            images = gaussian_blur(images, sigma, radius)
    if (params[:, THRESHOLD] <= 255).any():
        images = solarize(images, threshold.to(images.dtype)[:, None, None, None])
    return images


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
