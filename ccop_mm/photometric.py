"""MoCo v2's photometric augmentation of a whole batch at once, each image with parameters of its own.

Pure functions on tensors, on any device; images are RGB ``(B, 3, H, W)``, floats from 0 to 255. The formulas are those
of torchvision's functions on tensors, which take one scalar for a batch. kornia's take a factor per image, but its
color jitter has one order of the four operations for a batch, and it is slower (docs/performance.md). Nothing is copied
from the device to the host: what has to be known there, such as which images are turned in hue, is read from the
parameters, which come from the loader and lie on the CPU.
"""

import math

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

#: The operations of torchvision's ColorJitter, by the numbers that its random order gives them.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

#: Columns of an image's parameters, float32 ``(NUM_PARAMS,)``. ORDER: four columns, which operation comes first, second
#: and so on. FACTORS: four columns in the order of the numbers above; 1, 1, 1, 0 change nothing. GREY: 0 or 1. SIGMA:
#: the blur's in pixels, 0 for none. THRESHOLD: grey level from which on values are inverted, above 255 for none.
ORDER, FACTORS, GREY, SIGMA, THRESHOLD = slice(0, 4), slice(4, 8), 8, 9, 10
NUM_PARAMS = 11

#: Parameters that change nothing.
NEUTRAL = (0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 256.0)

#: ITU-R 601 luma, as torchvision rounds it (its weights add up to 0.9999).
LUMA = (0.2989, 0.587, 0.114)

#: Hue, in sextants from red, at which red, green and blue are least.
LEAST = (3.0, 5.0, 1.0)

#: A blur's kernel ends here, in sigmas: 6e-5 of its weight lies beyond, 0.02 grey levels at most.
KERNEL_REACH = 4.0


def luma(images: Tensor) -> Tensor:
    """Grey values of RGB images: ``(B, 3, H, W) -> (B, 1, H, W)``."""
    grey = images[:, 0:1] * LUMA[0]
    return grey.add_(images[:, 1:2], alpha=LUMA[1]).add_(images[:, 2:3], alpha=LUMA[2])


def blend(images: Tensor, factor: Tensor, of_grey: Tensor, of_mean: Tensor) -> Tensor:
    """``factor * image + (1 - factor) * base``, clamped to 0..255: brightness, contrast and saturation in one formula.

    The base is black (brightness), the mean of the grey values (contrast) or the grey values (saturation, and greying
    with a factor of 0).

    Args:
        images (Tensor): ``(B, 3, H, W)``.
        factor (Tensor): ``(B, 1, 1, 1)``; 1 changes nothing, to the last bit.
        of_grey (Tensor): ``(B, 1, 1, 1)``, 1 where the base is the grey values, else 0.
        of_mean (Tensor): ``(B, 1, 1, 1)``, 1 where it is their mean, else 0.

    Returns:
        Tensor: ``(B, 3, H, W)``, new.
    """
    base = luma(images)
    mean = base.mean(dim=(2, 3), keepdim=True)
    base.mul_(of_grey).add_(mean * of_mean).mul_(1 - factor)
    return torch.addcmul(base, images, factor).clamp_(0, 255)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue, keeping value and chroma: torchvision's way to HSV and back in closed form.

    With hue h in sextants, value v and chroma c, a channel is ``v - c * clamp(2 - d, 0, 1)``, where d is the distance,
    on the circle of six, between h and the hue at which that channel is least.

    Args:
        images (Tensor): ``(B, 3, H, W)``, any range.
        shift (Tensor): ``(B, 1, 1)`` in whole turns, as torchvision's ``hue_factor``, from -0.5 to 0.5.

    Returns:
        Tensor: ``(B, 3, H, W)``, new.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # The sextant and the place in it, times chroma; lerp with weights of 0 and 1 takes a sixth of where's time.
    hue = torch.sub(red, green).add_(chroma, alpha=4)
    hue.lerp_(torch.sub(blue, red).add_(chroma, alpha=2), value.clone().eq_(green))
    hue.lerp_(green - blue, value.clone().eq_(red))
    # Where chroma is 0 so is what it divides: grey stays grey.
    hue.div_(chroma.clamp(min=1e-4)).add_(6 * shift)
    out = torch.empty_like(images)
    for channel, least in enumerate(LEAST):
        distance = hue - least
        distance.sub_((distance / 6).round_(), alpha=6).abs_()  # on the circle: remainder() takes three times as long
        torch.addcmul(value, chroma, distance.neg_().add_(2).clamp_(0, 1), value=-1, out=out[:, channel])
    return out


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Sampled Gaussians that add up to 1: ``(B,) -> (B, 2 * radius + 1)``; that of sigma 0 changes nothing."""
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=sigma.device)
    sigma = sigma.float()[:, None]
    # Cut off by the image's own sigma, so that it does not matter with which others it lies in a batch.
    within = taps.abs() <= (KERNEL_REACH * sigma).ceil()
    weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)) ** 2) * within
    return weights / weights.sum(dim=1, keepdim=True)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur, each image by its own sigma, edges reflected as in torchvision.

    Args:
        images (Tensor): ``(B, 3, H, W)``.
        sigma (Tensor): ``(B,)`` in pixels; 0 changes nothing.
        radius (int): Of the kernel, below H and W.

    Returns:
        Tensor: ``(B, 3, H, W)``, new.
    """
    batch, channels, height, width = images.shape
    kernels = gaussian_kernels(sigma, radius).to(images.dtype).repeat_interleave(channels, 0)  # (B * 3, K)
    groups = batch * channels
    # (B, 3, H, W) -> (1, B * 3, H, W): one group of the convolution for each channel of each image
    padded = F.pad(images, (radius, radius, 0, 0), mode='reflect').view(1, groups, height, width + 2 * radius)
    rows = F.conv2d(padded, kernels[:, None, None, :], groups=groups)
    padded = F.pad(rows, (0, 0, radius, radius), mode='reflect')
    return F.conv2d(padded, kernels[:, None, :, None], groups=groups).view(images.shape)


def gaussian_blur_on_cpu(images: Tensor, sigma: Tensor, radius: int) -> None:
    """:func:`gaussian_blur` by OpenCV and in place: a grouped convolution takes longer on a CPU (docs/performance.md).

    Args:
        images (Tensor): ``(B, 3, H, W)`` on the CPU.
        sigma (Tensor): ``(B,)`` in pixels; images with 0 are passed over.
        radius (int): Of the widest kernel, below H and W.
    """
    kernels = gaussian_kernels(sigma, radius).numpy()
    for row in sigma.nonzero().flatten().tolist():
        kernel = kernels[row][kernels[row] > 0]  # its own taps
        for plane in images[row]:  # (H, W)
            whole = plane.element_size() > 2  # OpenCV has no half precision
            exact = (plane if whole else plane.float()).numpy()
            blurred = cv2.sepFilter2D(exact, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
            if whole:
                exact[...] = blurred  # by numpy: torch would wake its threads for each plane
            else:
                plane.copy_(torch.from_numpy(blurred))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values from ``threshold`` ``(B, 1, 1, 1)`` on."""
    return torch.where(images >= threshold, 255 - images, images)


def apply(images: Tensor, params: Tensor) -> Tensor:
    """Color jitter in each image's own order, then grey, blur and solarization.

    Args:
        images (Tensor): ``(B, 3, H, W)`` RGB, floats from 0 to 255, on any device; may be overwritten.
        params (Tensor): ``(B, NUM_PARAMS)`` float32 on the CPU, as :data:`NEUTRAL` tells.

    Returns:
        Tensor: ``(B, 3, H, W)`` of the images' type.
    """
    order = params[:, ORDER].long()
    factors = params[:, FACTORS].gather(1, order)  # (B, 4): the factor of what comes first, second ...
    shifts = params[:, FACTORS.start + HUE]
    turned = [((order[:, turn] == HUE) & (shifts != 0)).nonzero().flatten() for turn in range(4)]
    columns = [
        torch.where(order == HUE, 1.0, factors),
        (order == SATURATION).float(),
        (order == CONTRAST).float(),
        params[:, [FACTORS.start + HUE, GREY, SIGMA, THRESHOLD]],
    ]
    # Two copies for the whole batch, none of which waits.
    numbers = _to_device(torch.cat(columns, dim=1), images.device)
    rows = _to_device(torch.cat(turned), images.device).split([len(part) for part in turned])
    weights = numbers[:, :12].to(images.dtype).view(-1, 3, 4, 1, 1, 1)  # (B, 12) -> (B, 3, 4, 1, 1, 1)
    neutral = (columns[0] == 1).all(0).tolist()
    for turn in range(4):
        if not neutral[turn]:
            images = blend(images, *weights[:, :, turn].unbind(1))
        if len(turned[turn]):
            hue = numbers[rows[turn], 12].to(images.dtype)[:, None, None]
            images[rows[turn]] = shift_hue(images[rows[turn]], hue)
    return _after_jitter(images, params, numbers[:, 13:])


def _after_jitter(images: Tensor, params: Tensor, numbers: Tensor) -> Tensor:
    """Grey, blur and solarization; ``numbers (B, 3)`` are their parameters on the images' device."""
    grey, sigma, threshold = numbers.unbind(1)
    if params[:, GREY].any():
        keep = (1 - grey).to(images.dtype)[:, None, None, None]
        images = blend(images, keep, torch.ones_like(keep), torch.zeros_like(keep))
    widest = float(params[:, SIGMA].max()) if len(params) else 0.0
    if widest > 0:
        radius = min(math.ceil(KERNEL_REACH * widest), images.shape[2] - 1, images.shape[3] - 1)
        if images.device.type == 'cpu':
            gaussian_blur_on_cpu(images, sigma, radius)
        else:  # all, so that the shape is always the same: cuDNN tries out algorithms for each new one
            images = gaussian_blur(images, sigma, radius)
    if (params[:, THRESHOLD] <= 255).any():
        images = solarize(images, threshold.to(images.dtype)[:, None, None, None])
    return images


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
