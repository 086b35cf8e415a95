"""Visualizer that draws keypoints and skeletons."""

from typing import Any

import numpy as np
import torch
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

#: RGB colors of left keypoints (the first of a pair), right keypoints (the second) and unpaired ones: orange, sky blue
#: and yellow of the color-blind safe palette by Okabe and Ito.
LEFT, RIGHT, CENTER = (230, 159, 0), (86, 180, 233), (240, 228, 66)


@VISUALIZERS.register_module()
class KeypointLocalVisualizer(DetLocalVisualizer):
    """Extends mmdet's ``DetLocalVisualizer`` with keypoints and the skeleton given in the metainfo of the dataset.

    A link is drawn if both of its keypoints are. Of the ground truth, labeled keypoints are drawn.

    Args:
        name (str): Name of the visualizer.
        *args: Further arguments of mmdet's ``DetLocalVisualizer``.
        keypoint_thr (float): Minimum ``keypoint_scores`` of a predicted keypoint to be drawn. The scores are a softmax
            over 3,136 cells and thus low even for correct locations; Detectron2 uses 0.05 as well.
        keypoint_radius (float, optional): Radius of a keypoint in pixels. Defaults to 0.5 % of the longer side of the
            image, at least 1.5.
        **kwargs: Further arguments of mmdet's ``DetLocalVisualizer``.
    """

    # mmengine's ManagerMixin requires an explicit `name` parameter.
    def __init__(
        self,
        name: str = 'visualizer',
        *args: Any,
        keypoint_thr: float = 0.05,
        keypoint_radius: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, *args, **kwargs)
        self.keypoint_thr = keypoint_thr
        self.keypoint_radius = keypoint_radius

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: list[str] | None,
        palette: list[tuple[int, ...]] | None,
    ) -> np.ndarray:
        """Draws boxes, masks and keypoints of an image (H, W, 3) in RGB."""
        drawn = super()._draw_instances(image, instances, classes, palette)
        if 'keypoints' not in instances or not len(instances):
            return drawn
        radius = self.keypoint_radius or max(1.5, 0.005 * max(image.shape[:2]))
        if 'keypoint_scores' in instances:
            shown = instances.keypoint_scores >= self.keypoint_thr
        else:
            shown = instances.keypoints_visible > 0
        for points, visible in zip(instances.keypoints, shown, strict=True):
            self._draw_links(points, visible, radius)
        # Matplotlib draws patches (the points) below lines (the links). Flattening the links to an image first puts the
        # points on top.
        self.set_image(self.get_image())
        for points, visible in zip(instances.keypoints, shown, strict=True):
            self._draw_points(points, visible, radius)
        return self.get_image()

    def _sides(self, num_keypoints: int) -> list[int]:
        """Returns 1 for each left keypoint, -1 for each right one and 0 for each unpaired one."""
        partners = self.dataset_meta.get('flip_indices', range(num_keypoints))
        return [(partner > index) - (partner < index) for index, partner in enumerate(partners)]

    def _draw_links(self, points: torch.Tensor, visible: torch.Tensor, radius: float) -> None:
        """Draws the skeleton of one object, given points (K, 2) in pixels and visible (K,) bool."""
        sides = self._sides(len(points))
        for first, second in self.dataset_meta.get('skeleton_links', []):
            if visible[first] and visible[second]:
                # A link between a paired and an unpaired keypoint takes the color of the paired one. A link between a
                # left and a right keypoint, or between unpaired ones, takes the color of unpaired keypoints.
                side = sides[first] + sides[second]
                color = LEFT if side > 0 else RIGHT if side < 0 else CENTER
                ends = points[[first, second]]
                self.draw_lines(ends[None, :, 0], ends[None, :, 1], colors=color, line_widths=0.8 * radius)

    def _draw_points(self, points: torch.Tensor, visible: torch.Tensor, radius: float) -> None:
        """Draws the keypoints of one object; arguments as in :meth:`_draw_links`."""
        sides = self._sides(len(points))
        for index in visible.nonzero().flatten().tolist():
            self.draw_circles(
                points[index],
                radius=points.new_tensor([radius]),
                face_colors={1: LEFT, -1: RIGHT, 0: CENTER}[sides[index]],
                edge_colors='black',
                line_widths=0.25 * radius,
                alpha=1.0,
            )
