"""Image loading for detectors that tolerates missing and damaged files."""

import logging
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from ccop_mm.datasets.unreadable_images import UnreadableImageTracker
from ccop_mm.utils.text import single_line

#: Gray level of a placeholder image: mmdet's padding value.
PLACEHOLDER_VALUE = 114


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` for mmdet pipelines, except that an unreadable file does not stop the run.

    mmcv raises an exception or fails an assertion, even with ``ignore_empty=True``. This transform logs each unreadable
    file once per process, and counts them if ``tracker`` is set (:class:`ccop_mm.engine.UnreadableImageHook`).

    Args:
        unreadable (str): What to return for an unreadable file. ``'redraw'``, for training: None, for which mmengine's
            dataset samples another image. ``'blank'``, for testing, where every image needs a result: a gray image of
            the annotated size, so that its objects count as missed.
        **kwargs: Arguments of mmcv's ``LoadImageFromFile``.

    Attributes:
        tracker (UnreadableImageTracker | None): Counts the images of the dataset and raises an ``InputError`` if too
            many are unreadable.
    """

    def __init__(self, unreadable: str = 'redraw', **kwargs: Any) -> None:
        if unreadable not in ('redraw', 'blank'):
            raise ValueError(f"unreadable must be 'redraw' or 'blank', got {unreadable!r}")
        super().__init__(**kwargs)
        self.unreadable = unreadable
        self.tracker: UnreadableImageTracker | None = None
        self._logged_paths: set[str] = set()

    def transform(self, results: dict) -> dict | None:
        """Adds ``img`` (H, W, 3) uint8 BGR, ``img_shape`` and ``ori_shape``; returns None to request another image."""
        tracker = self.tracker if 'sample_idx' in results else None
        try:
            loaded = super().transform(results)
            if tracker is not None:
                tracker.mark_readable(results['sample_idx'])
            return loaded
        except (AssertionError, OSError, cv2.error) as error:  # mmcv asserts that the image was decoded
            reason = error
        path = results['img_path']
        outcome = 'another image replaces it' if self.unreadable == 'redraw' else 'its objects count as missed'
        if tracker is not None:
            tracker.mark_unreadable(results['sample_idx'], path, reason, outcome)
        elif path not in self._logged_paths:
            self._logged_paths.add(path)
            print_log(
                f'{path} cannot be read, {outcome}: {single_line(reason)}', logger='current', level=logging.WARNING
            )
        if self.unreadable == 'redraw':
            return None
        shape = results['height'], results['width']
        dtype = np.float32 if self.to_float32 else np.uint8
        results['img'] = np.full((*shape, 3), PLACEHOLDER_VALUE, dtype=dtype)
        results['img_shape'] = results['ori_shape'] = shape
        return results
