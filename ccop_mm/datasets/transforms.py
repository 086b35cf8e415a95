"""Two views of a photo, and the boxes that follow every step.

Boxes lie in ``results['proposals']``, float32 ``(n, 4)`` xyxy pixels of the present image; ``results['proposal_ids']``
tells which of the photo's boxes each row is, so that both views can be matched again after some boxes were dropped.
"""

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmselfsup.registry import TRANSFORMS
from PIL import Image

from ccop_mm import boxes as box_ops


def sample_window(height: int, width: int, scale, ratio, max_attempts: int = 10) -> tuple[int, int, int, int]:
    """A random window by torchvision's rule for RandomResizedCrop, drawn from numpy's global generator.

    Args:
        height (int): Of the image, in pixels.
        width (int): Of the image, in pixels.
        scale (tuple[float, float]): Range of the window's share of the image's area.
        ratio (tuple[float, float]): Range of its width over height, uniform in the logarithm.
        max_attempts (int): Draws before falling back to the largest central window within the ratios.

    Returns:
        tuple[int, int, int, int]: x1, y1, x2, y2.
    """
    for _ in range(max_attempts):
        target = height * width * np.random.uniform(*scale)
        aspect = math.exp(np.random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
            return x, y, x + w, y + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _area(boxes: np.ndarray) -> np.ndarray:
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


@TRANSFORMS.register_module()
class ObjectResizedCrop(BaseTransform):
    """RandomResizedCrop for a photo and its boxes; only the window is resized.

    Boxes are clipped to the view. One that loses more than ``max_clipped`` of its area is dropped (Sec. 3.1: 40 %), and
    one whose area in the view is under ``min_area``.

    Args:
        size (int | tuple[int, int]): The view's height and width; the paper uses 224.
        scale (tuple[float, float]): The window's share of the photo (MoCo v2: 0.2 to 1).
        ratio (tuple[float, float]): The window's width over height (torchvision's default).
        max_clipped (float): Largest share of a box's area that may lie outside the view.
        min_area (float): Smallest area of a box in the view, in square pixels. The paper does not say what is too
            small; 12^2 is its rule for proposals.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        max_clipped: float = 0.4,
        min_area: float = 144,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.scale = scale
        self.ratio = ratio
        self.max_clipped = max_clipped
        self.min_area = min_area

    def transform(self, results: dict) -> dict:
        """Changes ``img``, ``proposals`` and ``proposal_ids``; adds ``view_window``, xyxy in pixels of the photo."""
        image = results['img']
        window = sample_window(*image.shape[:2], self.scale, self.ratio)
        height, width = self.size
        # Pillow filters by the scale of the reduction, as torchvision does on PIL images; OpenCV's linear mode would
        # alias.
        x1, y1, x2, y2 = window
        part = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2]))
        results['img'] = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
        results['img_shape'] = self.size
        results['view_window'] = window

        (seen,), (keep,) = self.follow(results['proposals'], [window])
        results['proposals'] = seen[keep]
        results['proposal_ids'] = results['proposal_ids'][keep]
        return results

    def follow(self, boxes: np.ndarray, windows: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """How views show the boxes of their photo: :func:`ccop_mm.boxes.crop_and_resize`, ``clip``, the two rules.

        Written out in numpy, for a loader's time goes into the calls: torch takes five times as long on so few boxes.

        Args:
            boxes (np.ndarray): ``(n, 4)`` float32 in pixels of the photo.
            windows (list[tuple]): The part of the photo that each of v views shows.

        Returns:
            tuple[np.ndarray, np.ndarray]: ``(v, n, 4)`` in pixels of the view, clipped; ``(v, n)``, which of them it
            keeps.
        """
        windows, size = np.array(windows, dtype=np.float32)[:, None], np.float32(self.size[::-1] * 2)  # (v, 1, 4), (4,)
        origin, end = windows[..., [0, 1, 0, 1]], windows[..., [2, 3, 2, 3]]
        whole = (boxes - origin) * (size / (end - origin))
        seen = np.minimum(np.maximum(whole, 0), size)
        area, whole_area = _area(seen), _area(whole)
        return seen, (whole_area - area <= self.max_clipped * whole_area) & (area >= self.min_area)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, '
            f'max_clipped={self.max_clipped}, min_area={self.min_area})'
        )


@TRANSFORMS.register_module()
class ObjectFlip(BaseTransform):
    """Mirrors the view and its boxes left to right.

    Args:
        prob (float): MoCo v2 uses 0.5.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Changes ``img`` and ``proposals``; adds ``flip``."""
        results['flip'] = bool(np.random.rand() < self.prob)
        if results['flip']:
            results['img'] = results['img'][:, ::-1]
            flipped = box_ops.flip_horizontal(torch.from_numpy(results['proposals']), results['img'].shape[1])
            results['proposals'] = flipped.numpy()
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class TwoObjectViews(BaseTransform):
    """Draws two views and keeps the objects that both show (Sec. 3.1).

    Args:
        transforms (list[dict]): The pipeline of a view.
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.view = Compose([TRANSFORMS.build(transform) for transform in transforms])

    def transform(self, results: dict) -> dict:
        """Replaces ``img`` by both views; adds ``boxes_q`` and ``boxes_k`` ``(n, 4)``, the same objects row by row."""
        query, key = self.view(dict(results)), self.view(dict(results))
        _, rows_q, rows_k = np.intersect1d(
            query['proposal_ids'], key['proposal_ids'], assume_unique=True, return_indices=True
        )
        results['img'] = [query['img'], key['img']]
        results['boxes_q'] = query['proposals'][rows_q]
        results['boxes_k'] = key['proposals'][rows_k]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(view={self.view})'
