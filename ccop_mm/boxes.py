"""Box geometry on plain tensors.

Boxes are ``(x1, y1, x2, y2)`` in pixels, ``x2`` and ``y2`` exclusive; shapes are ``(height, width)``. Every function
takes any leading dimensions, keeps the dtype, and is differentiable where that makes sense.
"""

import torch
from torch import Tensor

#: Which point of a box Eq. 7's shift moves and its scaling keeps.
ANCHORS = ('top_left', 'center')


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes ``(..., 4)`` in square pixels, shape ``(...)``; an inverted box has area 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of corresponding boxes of ``a`` and ``b``, both ``(..., 4)`` and broadcast against each other.

    A box without area has IoU 0 with everything, itself included, and never NaN.
    """
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = area(a) + area(b) - inter
    return torch.where(union > 0, inter / union.where(union > 0, torch.ones_like(union)), torch.zeros_like(union))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` ``(N, 4)`` with every box of ``b`` ``(M, 4)``: ``(N, M)``."""
    return aligned_iou(a[:, None], b[None])


def clip(boxes: Tensor, img_shape: tuple[int, int]) -> Tensor:
    """Boxes cut to the image. Inside, IoU with any box of the same image can only rise by this."""
    height, width = img_shape
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def crop_and_resize(boxes: Tensor, window: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes as seen after cutting ``window`` out of the image and resizing it to ``size``, not clipped.

    Args:
        boxes (Tensor): ``(..., 4)`` in pixels of the image.
        window (Tensor): ``(..., 4)``, the part that is cut out, in pixels of the image; broadcast against the boxes.
        size (tuple[int, int]): ``(height, width)`` of the result.
    """
    height, width = size
    origin = window[..., :2]
    scale = boxes.new_tensor([width, height]) / (window[..., 2:] - origin)
    return (boxes - torch.cat([origin, origin], dim=-1)) * torch.cat([scale, scale], dim=-1)


def flip_horizontal(boxes: Tensor, width: int) -> Tensor:
    """Boxes as seen after mirroring an image of ``width`` pixels left to right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def jitter(boxes: Tensor, noise: Tensor, anchor: str = 'top_left') -> Tensor:
    """Eq. 7: ``x' = sx * w + x``, ``y' = sy * h + y``, ``w' = w * exp(sw)``, ``h' = h * exp(sh)``.

    Args:
        boxes (Tensor): ``(..., 4)``.
        noise (Tensor): ``(..., 4)``, the values ``(sx, sy, sw, sh)``; broadcast against the boxes.
        anchor (str): ``'top_left'``: ``(x, y)`` is the top-left corner, as in the paper. ``'center'``: it is the
            center, as in the authors' released code.

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
