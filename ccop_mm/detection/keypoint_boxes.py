"""Boxes that carry keypoints through mmdet's transforms."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes, register_box, register_box_converter
from torch import Tensor


@register_box('hbox_keypoints')
class KeypointBoxes(HorizontalBoxes):
    """mmdet's horizontal boxes, each with K keypoints that go wherever the box goes.

    Every geometric transform of mmdet that moves, drops or joins boxes moves, drops and joins the keypoints, so none
    needs a variant for keypoints. A mirrored object's left is its right: ``flip_indices`` says which keypoints change
    places. What would leave boxes without their keypoints raises a TypeError.

    Args:
        data (Tensor | np.ndarray | Sequence): (n, 4) xyxy.
        keypoints (Tensor | np.ndarray): (n, K, 2) x, y, in the boxes' coordinates.
        visible (Tensor | np.ndarray): (n, K), above 0 where the keypoint is labeled.
        flip_indices (Sequence[int]): K; see :func:`ccop_mm.detection.skeleton.complete_metainfo`.
        dtype, device, clone, in_mode: Of mmdet's ``HorizontalBoxes``.
    """

    def __init__(self, data, keypoints=None, visible=None, flip_indices: Sequence[int] = (), **kwargs) -> None:
        if keypoints is None or visible is None:
            raise TypeError('KeypointBoxes: this operation on boxes has no counterpart for their keypoints')
        super().__init__(data, **kwargs)
        clone = torch.clone if kwargs.get('clone', True) else lambda tensor: tensor
        self.flip_indices = list(flip_indices)
        self.keypoints = clone(torch.as_tensor(keypoints).to(self.tensor)).reshape(len(self), len(self.flip_indices), 2)
        self.visible = clone(torch.as_tensor(visible).to(self.tensor)).reshape(len(self), len(self.flip_indices))

    def _like(self, boxes: Tensor, keypoints: Tensor, visible: Tensor, clone: bool = False) -> 'KeypointBoxes':
        return type(self)(boxes, keypoints, visible, self.flip_indices, clone=clone)

    def __getitem__(self, index) -> 'KeypointBoxes':
        if isinstance(index, (int, np.integer)):
            index = [index]
        elif isinstance(index, np.ndarray):
            index = torch.as_tensor(index, device=self.device)
        return self._like(self.tensor[index], self.keypoints[index], self.visible[index])

    def __setitem__(self, index, values: 'KeypointBoxes') -> None:
        super().__setitem__(index, values)
        self.keypoints[index], self.visible[index] = values.keypoints, values.visible

    def __deepcopy__(self, memo) -> 'KeypointBoxes':
        memo[id(self)] = other = self.clone()
        return other

    def clone(self) -> 'KeypointBoxes':
        return self._like(self.tensor, self.keypoints, self.visible, clone=True)

    def to(self, *args, **kwargs) -> 'KeypointBoxes':
        return self._like(*(part.to(*args, **kwargs) for part in (self.tensor, self.keypoints, self.visible)))

    @classmethod
    def cat(cls, box_list: Sequence['KeypointBoxes'], dim: int = 0) -> 'KeypointBoxes':
        if dim != 0:
            raise TypeError('KeypointBoxes can be joined along the first dimension only')
        parts = ([getattr(boxes, part) for boxes in box_list] for part in ('tensor', 'keypoints', 'visible'))
        return cls(*map(torch.cat, parts), box_list[0].flip_indices, clone=False)

    def flip_(self, img_shape: tuple[int, int], direction: str = 'horizontal') -> None:
        """Also exchanges left and right, but not for ``'diagonal'``, which is a rotation by 180 degrees."""
        super().flip_(img_shape, direction)
        if direction != 'vertical':
            self.keypoints[..., 0] = img_shape[1] - self.keypoints[..., 0]
        if direction != 'horizontal':
            self.keypoints[..., 1] = img_shape[0] - self.keypoints[..., 1]
        if direction != 'diagonal':
            self._exchange_sides()

    def translate_(self, distances: tuple[float, float]) -> None:
        super().translate_(distances)
        self.keypoints = self.keypoints + self.keypoints.new_tensor(distances)

    def rescale_(self, scale_factor: tuple[float, float]) -> None:
        super().rescale_(scale_factor)
        self.keypoints = self.keypoints * self.keypoints.new_tensor(scale_factor)

    def resize_(self, scale_factor: tuple[float, float]) -> None:
        raise TypeError('KeypointBoxes: boxes that change their size alone leave their keypoints behind')

    def clip_(self, img_shape: tuple[int, int]) -> None:
        """Also marks keypoints outside the image as not labeled."""
        super().clip_(img_shape)
        limit = self.keypoints.new_tensor((img_shape[1], img_shape[0]))
        inside = ((self.keypoints >= 0) & (self.keypoints <= limit)).all(-1)
        self.visible = self.visible * inside

    def rotate_(self, center: tuple[float, float], angle: float) -> None:
        matrix = self.tensor.new_tensor(cv2.getRotationMatrix2D(center, -angle, 1))  # (2, 3)
        super().rotate_(center, angle)
        self.keypoints = self.keypoints @ matrix[:, :2].T + matrix[:, 2]

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        """Also exchanges left and right if the matrix mirrors."""
        matrix = self.tensor.new_tensor(np.asarray(homography_matrix))  # (3, 3)
        super().project_(matrix)
        points = torch.cat((self.keypoints, torch.ones_like(self.keypoints[..., :1])), dim=-1) @ matrix.T
        self.keypoints = points[..., :2] / points[..., 2:]
        # The Jacobian's determinant at a point is det(matrix) over the cube of its third coordinate, 1 near the image.
        if torch.linalg.det(matrix.double()) < 0:
            self._exchange_sides()

    def _exchange_sides(self) -> None:
        self.keypoints = self.keypoints[:, self.flip_indices]
        self.visible = self.visible[:, self.flip_indices]


@register_box_converter('hbox_keypoints', 'hbox')
def _drop_keypoints(boxes: Tensor) -> Tensor:
    """For overlaps, which mmdet computes between plain boxes."""
    return boxes
