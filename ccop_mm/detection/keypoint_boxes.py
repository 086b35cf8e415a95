"""Boxes that carry their keypoints through mmdet's transforms."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes, register_box, register_box_converter
from torch import Tensor


@register_box('hbox_keypoints')
class KeypointBoxes(HorizontalBoxes):
    """Extends mmdet's ``HorizontalBoxes`` with K keypoints per box.

    The operations that mmdet's geometric transforms call (flip, translate, rescale, rotate, project, clip, index,
    concatenate) change boxes and keypoints together, so that these transforms need no variant for keypoints. An
    operation without an equivalent for keypoints raises a ``TypeError``.

    Args:
        data (Tensor | np.ndarray | Sequence): Boxes (n, 4), xyxy.
        keypoints (Tensor | np.ndarray): Keypoints (n, K, 2), x and y in the coordinates of the boxes.
        visible (Tensor | np.ndarray): Visibility (n, K), positive where the keypoint is labeled.
        flip_indices (Sequence[int]): K indices that swap left and right keypoints in a mirrored image; see
            :func:`ccop_mm.detection.skeleton.complete_metainfo`.
        **kwargs: Arguments of mmdet's ``HorizontalBoxes``: ``dtype``, ``device``, ``clone`` and ``in_mode``.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray | Sequence,
        keypoints: Tensor | np.ndarray | None = None,
        visible: Tensor | np.ndarray | None = None,
        flip_indices: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        # mmdet's own operations create boxes without keypoints if this class does not override them.
        if keypoints is None or visible is None:
            raise TypeError(
                'KeypointBoxes requires keypoints and visible: pass both, or avoid the box operation in the traceback, '
                'which is not defined for keypoints'
            )
        super().__init__(data, **kwargs)
        clone = torch.clone if kwargs.get('clone', True) else lambda tensor: tensor
        self.flip_indices = list(flip_indices)
        self.keypoints = clone(torch.as_tensor(keypoints).to(self.tensor)).reshape(len(self), len(self.flip_indices), 2)
        self.visible = clone(torch.as_tensor(visible).to(self.tensor)).reshape(len(self), len(self.flip_indices))

    def _like(self, boxes: Tensor, keypoints: Tensor, visible: Tensor, clone: bool = False) -> 'KeypointBoxes':
        return type(self)(boxes, keypoints, visible, self.flip_indices, clone=clone)

    def __getitem__(self, index: int | slice | Sequence | np.ndarray | Tensor) -> 'KeypointBoxes':
        if isinstance(index, (int, np.integer)):
            index = [index]
        elif isinstance(index, np.ndarray):
            index = torch.as_tensor(index, device=self.device)
        return self._like(self.tensor[index], self.keypoints[index], self.visible[index])

    def __setitem__(self, index: slice | Sequence | np.ndarray | Tensor, values: 'KeypointBoxes') -> None:
        super().__setitem__(index, values)
        self.keypoints[index], self.visible[index] = values.keypoints, values.visible

    def __deepcopy__(self, memo: dict) -> 'KeypointBoxes':
        memo[id(self)] = other = self.clone()
        return other

    def clone(self) -> 'KeypointBoxes':
        """Copies boxes and keypoints."""
        return self._like(self.tensor, self.keypoints, self.visible, clone=True)

    def to(self, *args: Any, **kwargs: Any) -> 'KeypointBoxes':
        """Converts boxes and keypoints, as ``Tensor.to`` does."""
        return self._like(*(part.to(*args, **kwargs) for part in (self.tensor, self.keypoints, self.visible)))

    @classmethod
    def cat(cls, box_list: Sequence['KeypointBoxes'], dim: int = 0) -> 'KeypointBoxes':
        """Concatenates boxes and keypoints along the first dimension."""
        if dim != 0:
            raise TypeError(f'KeypointBoxes can only be concatenated along dimension 0, got {dim}')
        parts = ([getattr(boxes, part) for boxes in box_list] for part in ('tensor', 'keypoints', 'visible'))
        return cls(*map(torch.cat, parts), box_list[0].flip_indices, clone=False)

    def flip_(self, img_shape: tuple[int, int], direction: str = 'horizontal') -> None:
        """Flips boxes and keypoints in place.

        A horizontal or vertical flip also swaps left and right keypoints. ``'diagonal'`` is a rotation by 180 degrees
        and does not.
        """
        super().flip_(img_shape, direction)
        if direction != 'vertical':
            self.keypoints[..., 0] = img_shape[1] - self.keypoints[..., 0]
        if direction != 'horizontal':
            self.keypoints[..., 1] = img_shape[0] - self.keypoints[..., 1]
        if direction != 'diagonal':
            self._swap_left_right()

    def translate_(self, distances: tuple[float, float]) -> None:
        """Translates boxes and keypoints in place."""
        super().translate_(distances)
        self.keypoints = self.keypoints + self.keypoints.new_tensor(distances)

    def rescale_(self, scale_factor: tuple[float, float]) -> None:
        """Scales the coordinates of boxes and keypoints in place."""
        super().rescale_(scale_factor)
        self.keypoints = self.keypoints * self.keypoints.new_tensor(scale_factor)

    def resize_(self, scale_factor: tuple[float, float]) -> None:
        """Not supported: it changes the size of a box and keeps its center, which has no equivalent for keypoints."""
        raise TypeError('KeypointBoxes does not support resize_: use rescale_')

    def clip_(self, img_shape: tuple[int, int]) -> None:
        """Clips boxes to the image in place and marks keypoints outside of it as not labeled."""
        super().clip_(img_shape)
        limit = self.keypoints.new_tensor((img_shape[1], img_shape[0]))
        inside = ((self.keypoints >= 0) & (self.keypoints <= limit)).all(-1)
        self.visible = self.visible * inside

    def rotate_(self, center: tuple[float, float], angle: float) -> None:
        """Rotates boxes and keypoints in place."""
        matrix = self.tensor.new_tensor(cv2.getRotationMatrix2D(center, -angle, 1))  # (2, 3)
        super().rotate_(center, angle)
        self.keypoints = self.keypoints @ matrix[:, :2].T + matrix[:, 2]

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        """Applies a homography in place. A matrix that mirrors also swaps left and right keypoints."""
        matrix = self.tensor.new_tensor(np.asarray(homography_matrix))  # (3, 3)
        super().project_(matrix)
        points = torch.cat((self.keypoints, torch.ones_like(self.keypoints[..., :1])), dim=-1) @ matrix.T
        self.keypoints = points[..., :2] / points[..., 2:]
        # The Jacobian determinant at a point is det(matrix) / w**3, where w, the third homogeneous coordinate, is
        # positive in the image. A negative det(matrix) therefore means that the map mirrors.
        if torch.linalg.det(matrix.double()) < 0:
            self._swap_left_right()

    def _swap_left_right(self) -> None:
        self.keypoints = self.keypoints[:, self.flip_indices]
        self.visible = self.visible[:, self.flip_indices]


@register_box_converter('hbox_keypoints', 'hbox')
def _drop_keypoints(boxes: Tensor) -> Tensor:
    """Returns the plain boxes, between which mmdet computes overlaps."""
    return boxes
