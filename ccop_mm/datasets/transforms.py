"""Transforms that crop, resize and flip an image together with its proposals.

``results['proposals']`` contains the boxes, ``(n, 4)`` float32 xyxy in pixels of the current image, and
``results['proposal_ids']`` the index of each one among all proposals of the image, so that the boxes of two views can
be matched after each view has dropped some.
"""

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmselfsup.registry import TRANSFORMS
from PIL import Image

from ccop_mm.utils import boxes as box_ops

#: A crop ``(x1, y1, x2, y2)`` in pixels of the image, x2 and y2 exclusive.
CropBox = tuple[int, int, int, int]


def sample_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], max_attempts: int = 10
) -> CropBox:
    """Samples a crop like torchvision's ``RandomResizedCrop``, from numpy's global generator.

    Args:
        height (int): Height of the image in pixels.
        width (int): Width of the image in pixels.
        scale (tuple[float, float]): Range of the crop area relative to the image area.
        ratio (tuple[float, float]): Range of the aspect ratio (width / height), which is log-uniform.
        max_attempts (int): Number of attempts before the largest central crop within ``ratio`` is returned.

    Returns:
        tuple[int, int, int, int]: The crop as x1, y1, x2, y2.
    """
    for _ in range(max_attempts):
        area = height * width * np.random.uniform(*scale)
        aspect = math.exp(np.random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
            return x, y, x + w, y + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _box_area(boxes: np.ndarray) -> np.ndarray:
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


@TRANSFORMS.register_module()
class ObjectResizedCrop(BaseTransform):
    """Random resized crop of an image and its proposals.

    Boxes are clipped to the view. A box is dropped if clipping removes more than ``max_clipped`` of its area (Sec. 3.1:
    40 %) or if its area in the view is smaller than ``min_area``.

    Required keys: ``img``, ``proposals``, ``proposal_ids``.
    Modified keys: ``img``, ``img_shape``, ``proposals``, ``proposal_ids``.
    Added keys: ``view_crop_box``, xyxy in pixels of the image.

    Args:
        size (int | tuple[int, int]): Height and width of the view. The paper uses 224.
        scale (tuple[float, float]): Range of the crop area relative to the image area. MoCo v2 uses (0.2, 1).
        ratio (tuple[float, float]): Range of the aspect ratio (width / height) of the crop; torchvision's by default.
        max_clipped (float): Maximum fraction of the area of a box that may lie outside the view.
        min_area (float): Minimum area of a box in the view, in square pixels. The paper gives no value; 12^2 is its
            threshold for proposals.
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
        """Crops and resizes ``img`` and ``proposals``; adds ``view_crop_box``."""
        image = results['img']
        crop_box = sample_crop_box(*image.shape[:2], self.scale, self.ratio)
        height, width = self.size
        x1, y1, x2, y2 = crop_box
        crop = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2]))
        # Pillow's filter is antialiased, as in torchvision on PIL images; OpenCV's bilinear filter is not.
        results['img'] = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR))
        results['img_shape'] = self.size
        results['view_crop_box'] = crop_box

        (boxes,), (keep,) = self.transform_boxes(results['proposals'], [crop_box])
        results['proposals'] = boxes[keep]
        results['proposal_ids'] = results['proposal_ids'][keep]
        return results

    def transform_boxes(self, boxes: np.ndarray, crop_boxes: list[CropBox]) -> tuple[np.ndarray, np.ndarray]:
        """Maps the boxes of an image into several views and applies the two criteria for dropping a box.

        Equivalent to :func:`ccop_mm.utils.boxes.crop_and_resize` followed by :func:`ccop_mm.utils.boxes.clip`, in numpy
        because torch's overhead per call dominates for a few boxes.

        Args:
            boxes (np.ndarray): ``(n, 4)`` float32 in pixels of the image.
            crop_boxes (list[tuple]): Crop of each of v views.

        Returns:
            tuple[np.ndarray, np.ndarray]: Boxes in pixels of each view, clipped, ``(v, n, 4)``; mask of the boxes that
            each view keeps, ``(v, n)``.
        """
        crops = np.array(crop_boxes, dtype=np.float32)[:, None]  # (v, 1, 4)
        size = np.float32(self.size[::-1] * 2)  # (4,): width, height, width, height
        top_left, bottom_right = crops[..., [0, 1, 0, 1]], crops[..., [2, 3, 2, 3]]
        unclipped = (boxes - top_left) * (size / (bottom_right - top_left))
        clipped = np.minimum(np.maximum(unclipped, 0), size)
        area, unclipped_area = _box_area(clipped), _box_area(unclipped)
        return clipped, (unclipped_area - area <= self.max_clipped * unclipped_area) & (area >= self.min_area)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, '
            f'max_clipped={self.max_clipped}, min_area={self.min_area})'
        )


@TRANSFORMS.register_module()
class ObjectFlip(BaseTransform):
    """Random horizontal flip of an image and its proposals.

    Required keys: ``img``, ``proposals``.
    Modified keys: ``img``, ``proposals``.
    Added keys: ``flip``.

    Args:
        prob (float): Probability of the flip. MoCo v2 uses 0.5.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Flips ``img`` and ``proposals`` with probability ``prob``; adds ``flip``."""
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
    """Generates two views of an image and keeps the objects that are in both (Sec. 3.1).

    Required keys: ``img``, ``proposals``, ``proposal_ids``.
    Modified keys: ``img``, a list of the two views.
    Added keys: ``boxes_q`` and ``boxes_k``, both ``(n, 4)``; row r of both is the same object.

    Args:
        transforms (list[dict]): Transforms of a view.
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.view = Compose([TRANSFORMS.build(transform) for transform in transforms])

    def transform(self, results: dict) -> dict:
        """Replaces ``img`` by the query view and the key view; adds ``boxes_q`` and ``boxes_k``."""
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
