"""Two views with boxes: geometry in the loader, everything else in a batch on the device."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmselfsup.datasets.transforms import PackSelfSupInputs
from mmselfsup.registry import TRANSFORMS

from ccop_mm.datasets.loading import REDUCED, decode_photo, is_jpeg
from ccop_mm.datasets.photometric_recipe import PhotometricRecipe
from ccop_mm.datasets.transforms import ObjectFlip, ObjectResizedCrop, sample_window

Window = tuple[int, int, int, int]


def resize_window(image: np.ndarray, window: Window, size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """Cuts a window out and resizes it as Pillow's bilinear filter does, which torchvision uses: antialiased.

    torch's code for uint8 does it in a quarter of Pillow's time; it differs by one grey level at most.

    Args:
        image (np.ndarray): ``(H, W, 3)`` uint8.
        window (tuple): x1, y1, x2, y2.
        size (tuple[int, int]): Height and width of the result.
        flip (bool): Whether the result is mirrored, left to right.

    Returns:
        np.ndarray: ``(height, width, 3)`` uint8; in memory one channel follows another, as the network takes them, so
        that packing need not copy.
    """
    x1, y1, x2, y2 = window
    # (h, w, 3) -> (1, 3, h, w), a view: torch works on channels that lie side by side
    part = torch.from_numpy(image[y1:y2, x1:x2]).permute(2, 0, 1)[None]
    planes = F.interpolate(part, size, mode='bilinear', antialias=True)[0].contiguous().numpy()
    if flip:  # (3, height, width) -> (3 * height, width): one call, a quarter of the time of numpy's [:, ::-1]
        planes = cv2.flip(planes.reshape(-1, size[1]), 1).reshape(planes.shape)
    return planes.transpose(1, 2, 0)


def choose_reduction(windows: list[Window], size: tuple[int, int], margin: float) -> int:
    """The largest factor of :data:`REDUCED` that leaves every window ``margin`` times as large as the view."""
    room = min(min((x2 - x1) / size[1], (y2 - y1) / size[0]) for x1, y1, x2, y2 in windows)
    return max(factor for factor in REDUCED if factor == 1 or factor * margin <= room)


def snap(window: Window, factor: int) -> Window:
    """The window with its sides moved to multiples of ``factor``, inside the old one but for its top-left corner."""
    x1, y1, x2, y2 = window
    x, y = x1 // factor * factor, y1 // factor * factor
    return x, y, x + (x2 - x1) // factor * factor, y + (y2 - y1) // factor * factor


@TRANSFORMS.register_module()
class SplitTwoObjectViews(BaseTransform):
    """:class:`TwoObjectViews` with the work split: geometry here, the photometric part on the training device.

    It takes the same pipeline of a view. Windows and flips are drawn first and boxes follow them before any pixel is
    touched; then the photo is decoded once and only the windows are resized and flipped. Of the photometric transforms
    only the parameters are drawn, into ``photometric``; :mod:`ccop_mm.photometric` applies them to the whole batch in
    ``TwoViewDataPreprocessor``.

    Args:
        transforms (list[dict]): The pipeline of a view: ``ObjectResizedCrop`` first; then, in this order, any of
            ``ColorJitter`` (also in a ``RandomApply``), ``RandomGrayscale``, ``RandomGaussianBlur`` and
            ``RandomSolarize``; ``ObjectFlip`` anywhere.
        min_common (int): Views are drawn anew while fewer objects than this are in both. 0: never, which is the paper's
            augmentation as published; more objects mean windows that overlap more.
        max_redraws (int): So many times at most; then the draw with the most is taken. A photo with fewer proposals
            than ``min_common`` aims at what it has.
        reduce_margin (float, optional): JPEG photos are decoded at 1/2, 1/4 or 1/8 of their size if every window is
            then still so many times as large as its view; window sides are multiples of 2, 4 or 8 then. The difference
            in grey levels is in docs/performance.md. None: never.
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
            raise ValueError('a view begins with ObjectResizedCrop and has at most one ObjectFlip')
        self.crop = steps[0]
        self.flip_prob = flips[0].prob if flips else 0.0
        self.recipe = PhotometricRecipe.of([step for step in steps[1:] if step not in flips])
        self.min_common = min_common
        self.max_redraws = max_redraws
        self.reduce_margin = reduce_margin

    def transform(self, results: dict) -> dict:
        """Makes ``img``, both views, of ``img_bytes`` (``LoadPhoto(decode=False)``) or of a decoded ``img``.

        Adds ``boxes_q`` and ``boxes_k`` ``(n, 4)``, the same objects row by row; ``photometric (2, NUM_PARAMS)``;
        ``view_windows``, xyxy in pixels of the photo; ``flips``; ``redraws``.
        """
        content, image = results.pop('img_bytes', None), results.get('img')
        shape = results.get('proposal_img_shape') if image is None else image.shape[:2]
        if shape is None:
            image = decode_photo(content)
            shape = image.shape[:2]
        can_reduce = image is None and self.reduce_margin is not None and is_jpeg(content)
        windows, flips, boxes, reduction, redraws = self._draw_geometry(shape, results['proposals'], can_reduce)
        if image is None:
            image = decode_photo(content, shape, reduction)
        views = []
        for window, flip, seen in zip(windows, flips, boxes, strict=True):
            views.append(resize_window(image, tuple(side // reduction for side in window), self.crop.size, flip))
            if flip:
                seen[:, [0, 2]] = self.crop.size[1] - seen[:, [2, 0]]
        results.update(
            img=views,
            img_shape=self.crop.size,
            boxes_q=boxes[0],
            boxes_k=boxes[1],
            photometric=np.stack([self.recipe.draw(), self.recipe.draw()]),
            view_windows=windows,
            flips=flips,
            redraws=redraws,
        )
        return results

    def _draw_geometry(self, shape: tuple[int, int], proposals: np.ndarray, can_reduce: bool):
        wanted, best, redraws = min(self.min_common, len(proposals)), None, -1
        while best is None or (best[0] < wanted and redraws < self.max_redraws):
            redraws += 1
            windows = [sample_window(*shape, self.crop.scale, self.crop.ratio) for _ in range(2)]
            flips = [bool(np.random.rand() < self.flip_prob) for _ in range(2)]
            reduction = choose_reduction(windows, self.crop.size, self.reduce_margin) if can_reduce else 1
            windows = [snap(window, reduction) for window in windows]
            seen, kept = self.crop.follow(proposals, windows)
            boxes = seen[:, kept.all(0)]  # (2, n, 4) -> (2, m, 4): what both views keep
            if best is None or boxes.shape[1] > best[0]:
                best = boxes.shape[1], (windows, flips, boxes, reduction)
        return *best[1], redraws

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(crop={self.crop}, flip_prob={self.flip_prob}, recipe={self.recipe}, '
            f'min_common={self.min_common}, max_redraws={self.max_redraws}, reduce_margin={self.reduce_margin})'
        )


@TRANSFORMS.register_module()
class PackObjectViews(PackSelfSupInputs):
    """mmselfsup's ``PackSelfSupInputs``, with the ``photometric`` parameters beside the views where there are any."""

    def transform(self, results: dict) -> dict:
        """Packs ``inputs``, ``data_samples`` and ``photometric (2, NUM_PARAMS)``."""
        packed = super().transform(results)
        if 'photometric' in results:
            packed['photometric'] = torch.from_numpy(results['photometric'])
        return packed
