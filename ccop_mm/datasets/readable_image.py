"""Loading for detectors that a damaged photo does not end."""

import logging

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

#: A grey that says nothing: the value that mmdet pads with in its own detectors.
BLANK = 114


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` for mmdet's pipelines, except that an absent or damaged photo does not end the run.

    mmcv raises, or stops at an assertion, even with ``ignore_empty=True``. Each photo is named once in the log of the
    process that meets it.

    Args:
        unreadable (str): ``'redraw'``: the dataset draws another photo (mmengine's way; training). ``'blank'``: a grey
            photo of the annotated size takes its place, so that its objects count as missed (testing, where every photo
            has to have a result).
        **kwargs: As mmcv's ``LoadImageFromFile``.
    """

    def __init__(self, unreadable: str = 'redraw', **kwargs) -> None:
        if unreadable not in ('redraw', 'blank'):
            raise ValueError(f"unreadable must be 'redraw' or 'blank', got {unreadable!r}")
        super().__init__(**kwargs)
        self.unreadable = unreadable
        self._named: set[str] = set()

    def transform(self, results: dict) -> dict | None:
        """Adds ``img`` (H, W, 3) uint8 BGR, ``img_shape`` and ``ori_shape``; None: draw another photo."""
        try:
            return super().transform(results)
        except (AssertionError, OSError, cv2.error) as error:  # the first is mmcv's for what does not decode
            reason = next(iter(str(error).splitlines()), '') or type(error).__name__
        path = results['img_path']
        outcome = 'another takes its place' if self.unreadable == 'redraw' else 'its objects count as missed'
        if path not in self._named:
            self._named.add(path)
            print_log(f'{path} cannot be read, {outcome}: {reason}', logger='current', level=logging.WARNING)
        if self.unreadable == 'redraw':
            return None
        shape = results['height'], results['width']
        results['img'] = np.full((*shape, 3), BLANK, dtype=np.float32 if self.to_float32 else np.uint8)
        results['img_shape'] = results['ori_shape'] = shape
        return results
