"""Box geometry on plain tensors.

Boxes are ``(x1, y1, x2, y2)`` in pixels, ``x2`` and ``y2`` exclusive; shapes are ``(height, width)``. All functions
accept any leading dimensions, keep the dtype and are differentiable almost everywhere.
"""

import torch
from torch import Tensor

#: Point of a box that Eq. 7 shifts and that its scaling keeps.
ANCHORS = ('top_left', 'center')


def area(boxes: Tensor) -> Tensor:
    """Computes the areas ``(...)`` of boxes ``(..., 4)`` in square pixels; the area of an inverted box is 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the IoU ``(...)`` of corresponding boxes ``a`` and ``b``, both ``(..., 4)``, with broadcasting.

    The IoU of a box without area with any box, including itself, is 0 and never NaN.
    """
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - inter
    return torch.where(union > 0, inter / union.where(union > 0, torch.ones_like(union)), torch.zeros_like(union))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the IoU ``(N, M)`` of every box of ``a`` ``(N, 4)`` with every box of ``b`` ``(M, 4)``."""
    return aligned_iou(a[:, None], b[None])


def clip(boxes: Tensor, img_shape: tuple[int, int]) -> Tensor:
    """Clips boxes ``(..., 4)`` to the image, which never lowers their IoU with a box inside the image."""
    height, width = img_shape
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def crop_and_resize(boxes: Tensor, crop_box: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps boxes into a crop of the image that is resized to ``size``, without clipping them.

    Args:
        boxes (Tensor): ``(..., 4)`` in pixels of the image.
        crop_box (Tensor): ``(..., 4)``, the crop in pixels of the image; broadcast against the boxes.
        size (tuple[int, int]): ``(height, width)`` of the resized crop.

    Returns:
        Tensor: ``(..., 4)`` in pixels of the resized crop.
    """
    height, width = size
    origin = crop_box[..., :2]
    scale = boxes.new_tensor([width, height]) / (crop_box[..., 2:] - origin)
    return (boxes - torch.cat([origin, origin], dim=-1)) * torch.cat([scale, scale], dim=-1)


def flip_horizontal(boxes: Tensor, width: int) -> Tensor:
    """Mirrors boxes ``(..., 4)`` left to right in an image of ``width`` pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def jitter(boxes: Tensor, noise: Tensor, anchor: str = 'top_left') -> Tensor:
    """Applies the noise of Eq. 7: ``x' = sx * w + x``, ``y' = sy * h + y``, ``w' = w * exp(sw)``, ``h' = h * exp(sh)``.

    Args:
        boxes (Tensor): ``(..., 4)``.
        noise (Tensor): ``(..., 4)``: sx, sy, sw, sh; broadcast against the boxes.
        anchor (str): Meaning of ``(x, y)``: ``'top_left'`` corner (paper) or ``'center'`` (authors' code).

    Returns:
        Tensor: ``(..., 4)``, not clipped.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    new_sides = sides * noise[..., 2:].exp()
    if anchor == 'top_left':
        top_left = boxes[..., :2] + noise[..., :2] * sides
    elif anchor == 'center':
        top_left = (boxes[..., :2] + boxes[..., 2:]) / 2 + noise[..., :2] * sides - new_sides / 2
    else:
        raise ValueError(f'anchor must be one of {ANCHORS}, got {anchor!r}')
    return torch.cat([top_left, top_left + new_sides], dim=-1)
