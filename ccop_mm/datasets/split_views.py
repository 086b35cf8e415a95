"""Two views of an image: geometric transforms in the data loader, photometric transforms on the training device."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmselfsup.datasets.transforms import PackSelfSupInputs
from mmselfsup.registry import TRANSFORMS

from ccop_mm.datasets.load_image import REDUCTION_FLAGS, decode_image, is_jpeg
from ccop_mm.datasets.photometric_recipe import PhotometricRecipe
from ccop_mm.datasets.transforms import CropBox, ObjectFlip, ObjectResizedCrop, sample_crop_box


def resize_crop(image: np.ndarray, crop_box: CropBox, size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """Crops an image, resizes the crop with an antialiased bilinear filter, and optionally flips it.

    The result differs from Pillow's bilinear filter, which torchvision uses, by at most one gray level.

    Args:
        image (np.ndarray): ``(H, W, 3)`` uint8.
        crop_box (tuple): The crop as x1, y1, x2, y2.
        size (tuple[int, int]): Height and width of the result.
        flip (bool): Whether to flip the result horizontally.

    Returns:
        np.ndarray: ``(height, width, 3)`` uint8, a view of contiguous ``(3, height, width)`` memory, so that packing
        requires no copy.
    """
    x1, y1, x2, y2 = crop_box
    crop = torch.from_numpy(image[y1:y2, x1:x2]).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
    planes = F.interpolate(crop, size, mode='bilinear', antialias=True)[0].contiguous().numpy()
    if flip:  # (3, height, width) -> (3 * height, width): flips all three planes in one call
        planes = cv2.flip(planes.reshape(-1, size[1]), 1).reshape(planes.shape)
    return planes.transpose(1, 2, 0)


def choose_reduction(crop_boxes: list[CropBox], size: tuple[int, int], margin: float) -> int:
    """Returns the largest decoding reduction at which every crop is still ``margin`` times as large as the view.

    Args:
        crop_boxes (list[tuple]): Crops at full resolution.
        size (tuple[int, int]): Height and width of the view.
        margin (float): Minimum ratio between the sides of a reduced crop and those of the view.

    Returns:
        int: A key of :data:`ccop_mm.datasets.load_image.REDUCTION_FLAGS`, 1 if no reduction is possible.
    """
    ratio = min(min((x2 - x1) / size[1], (y2 - y1) / size[0]) for x1, y1, x2, y2 in crop_boxes)
    return max(factor for factor in REDUCTION_FLAGS if factor == 1 or factor * margin <= ratio)


def snap_crop_box(crop_box: CropBox, factor: int) -> CropBox:
    """Rounds the top-left corner, the width and the height of a crop down to multiples of ``factor``."""
    x1, y1, x2, y2 = crop_box
    x, y = x1 // factor * factor, y1 // factor * factor
    return x, y, x + (x2 - x1) // factor * factor, y + (y2 - y1) // factor * factor


@TRANSFORMS.register_module()
class SplitTwoObjectViews(BaseTransform):
    """:class:`TwoObjectViews` with the photometric transforms deferred to the training device.

    Accepts the same transforms of a view. Crops and flips are sampled and applied to the boxes before the image is
    decoded; the image is then decoded once, and only the two crops are resized and flipped. For the photometric
    transforms only the parameters are sampled; :class:`ccop_mm.models.TwoViewDataPreprocessor` applies them to the
    whole batch (:mod:`ccop_mm.models.batch_photometric`).

    Required keys: ``img_bytes``, from ``LoadUnlabeledImage(decode=False)``, or ``img``; ``proposals``;
    ``proposal_img_shape`` (optional).
    Modified keys: ``img``, a list of the two views; ``img_shape``.
    Added keys: ``boxes_q`` and ``boxes_k``, both ``(n, 4)``, where row r of both is the same object; ``photometric``
    ``(2, NUM_PARAMS)``; ``view_crop_boxes``, xyxy in pixels of the image; ``flips``; ``redraws``, how often the crops
    were sampled again.

    Args:
        transforms (list[dict]): Transforms of a view: ``ObjectResizedCrop`` first; then any of ``ColorJitter``
            (optionally inside a ``RandomApply``), ``RandomGrayscale``, ``RandomGaussianBlur`` and ``RandomSolarize``,
            in this order; ``ObjectFlip`` at any position.
        min_common (int): The crops are sampled again while fewer objects than this are in both views. 0, the default,
            never samples them again, as in the paper. A higher value favors crops with a larger overlap. It is limited
            to the number of proposals of the image.
        max_redraws (int): Maximum number of times the crops are sampled again. If ``min_common`` is not reached, the
            crops with the most common objects are used.
        reduce_margin (float, optional): JPEG images are decoded at 1/2, 1/4 or 1/8 of their resolution if the sides of
            every crop are then still at least this many times those of the view. The sides of the crops are rounded to
            multiples of 2, 4 or 8. docs/performance.md gives the resulting difference in gray levels. None disables
            the reduction.
    """

    def __init__(
        self,
        transforms: list[dict],
        min_common: int = 0,
        max_redraws: int = 10,
        reduce_margin: float | None = 2.0,
    ) -> None:
        steps = [TRANSFORMS.build(transform) for transform in transforms]
        flips = [step for step in steps if isinstance(step, ObjectFlip)]
        if not steps or not isinstance(steps[0], ObjectResizedCrop) or len(flips) > 1:
            names = [type(step).__name__ for step in steps]
            raise ValueError(
                f'transforms must start with ObjectResizedCrop and contain at most one ObjectFlip, got {names}'
            )
        self.crop = steps[0]
        self.flip_prob = flips[0].prob if flips else 0.0
        self.recipe = PhotometricRecipe.from_transforms([step for step in steps[1:] if step not in flips])
        self.min_common = min_common
        self.max_redraws = max_redraws
        self.reduce_margin = reduce_margin

    def transform(self, results: dict) -> dict:
        """Replaces ``img_bytes`` or ``img`` by the two views; adds their boxes and photometric parameters."""
        content, image = results.pop('img_bytes', None), results.get('img')
        shape = results.get('proposal_img_shape') if image is None else image.shape[:2]
        if shape is None:
            image = decode_image(content)
            shape = image.shape[:2]
        can_reduce = image is None and self.reduce_margin is not None and is_jpeg(content)
        crop_boxes, flips, boxes, reduction, redraws = self._sample_geometry(shape, results['proposals'], can_reduce)
        if image is None:
            image = decode_image(content, shape, reduction)
        views = []
        for crop_box, flip, view_boxes in zip(crop_boxes, flips, boxes, strict=True):
            reduced_box = tuple(side // reduction for side in crop_box)
            views.append(resize_crop(image, reduced_box, self.crop.size, flip))
            if flip:
                view_boxes[:, [0, 2]] = self.crop.size[1] - view_boxes[:, [2, 0]]
        results.update(
            img=views,
            img_shape=self.crop.size,
            boxes_q=boxes[0],
            boxes_k=boxes[1],
            photometric=np.stack([self.recipe.sample(), self.recipe.sample()]),
            view_crop_boxes=crop_boxes,
            flips=flips,
            redraws=redraws,
        )
        return results

    def _sample_geometry(
        self, shape: tuple[int, int], proposals: np.ndarray, can_reduce: bool
    ) -> tuple[list[CropBox], list[bool], np.ndarray, int, int]:
        """Samples the crops and flips of both views.

        Args:
            shape (tuple[int, int]): Height and width of the image.
            proposals (np.ndarray): ``(n, 4)`` float32 in pixels of the image.
            can_reduce (bool): Whether the image can be decoded at a lower resolution.

        Returns:
            tuple: The two crops; the two flips; boxes of the m common objects in both views before flipping,
            ``(2, m, 4)``; decoding reduction; how often the crops were sampled again.
        """
        target, best, redraws = min(self.min_common, len(proposals)), None, -1
        while best is None or (best[0] < target and redraws < self.max_redraws):
            redraws += 1
            crop_boxes = [sample_crop_box(*shape, self.crop.scale, self.crop.ratio) for _ in range(2)]
            flips = [bool(np.random.rand() < self.flip_prob) for _ in range(2)]
            reduction = choose_reduction(crop_boxes, self.crop.size, self.reduce_margin) if can_reduce else 1
            crop_boxes = [snap_crop_box(crop_box, reduction) for crop_box in crop_boxes]
            clipped, keep = self.crop.transform_boxes(proposals, crop_boxes)
            boxes = clipped[:, keep.all(0)]  # (2, n, 4) -> (2, m, 4): objects that both views keep
            if best is None or boxes.shape[1] > best[0]:
                best = boxes.shape[1], (crop_boxes, flips, boxes, reduction)
        return *best[1], redraws

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(crop={self.crop}, flip_prob={self.flip_prob}, recipe={self.recipe}, '
            f'min_common={self.min_common}, max_redraws={self.max_redraws}, reduce_margin={self.reduce_margin})'
        )


@TRANSFORMS.register_module()
class PackObjectViews(PackSelfSupInputs):
    """mmselfsup's ``PackSelfSupInputs`` that also packs the ``photometric`` parameters, if present."""

    def transform(self, results: dict) -> dict:
        """Packs ``inputs``, ``data_samples`` and ``photometric (2, NUM_PARAMS)``."""
        packed = super().transform(results)
        if 'photometric' in results:
            packed['photometric'] = torch.from_numpy(results['photometric'])
        return packed
