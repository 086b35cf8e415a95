"""Figures with skeletons."""

import numpy as np
import torch
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

#: Of a pair's first keypoint (left), its second (right), and of those without a partner: Okabe and Ito's orange, sky
#: blue and yellow, told apart by color-blind readers too.
LEFT, RIGHT, CENTER = (230, 159, 0), (86, 180, 233), (240, 228, 66)


@VISUALIZERS.register_module()
class KeypointLocalVisualizer(DetLocalVisualizer):
    """mmdet's visualizer that also draws keypoints and the skeleton that the data set's metainfo names.

    A link is drawn where both its keypoints are. Truth shows labeled keypoints.

    Args:
        keypoint_thr (float): Least ``keypoint_scores`` of a predicted keypoint that is drawn. The scores are a softmax
            over 3,136 cells and low even where the place is right; 0.05 is Detectron2's choice.
        keypoint_radius (float, optional): In pixels; default: 0.5 % of the photo's longer side, at least 1.5.
        **kwargs: Of mmdet's ``DetLocalVisualizer``.
    """

    # mmengine wants to see a `name` in the signature.
    def __init__(
        self, name='visualizer', *args, keypoint_thr: float = 0.05, keypoint_radius: float | None = None, **kwargs
    ) -> None:
        super().__init__(name, *args, **kwargs)
        self.keypoint_thr = keypoint_thr
        self.keypoint_radius = keypoint_radius

    def _draw_instances(self, image: np.ndarray, instances: InstanceData, classes, palette) -> np.ndarray:
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
        # Matplotlib stacks patches under lines, in whatever order they come; points belong on top.
        self.set_image(self.get_image())
        for points, visible in zip(instances.keypoints, shown, strict=True):
            self._draw_points(points, visible, radius)
        return self.get_image()

    def _sides(self, num_keypoints: int) -> list[int]:
        """1 for the first of a pair, -1 for its second, 0 for a keypoint without a partner."""
        partners = self.dataset_meta.get('flip_indices', range(num_keypoints))
        return [(partner > index) - (partner < index) for index, partner in enumerate(partners)]

    def _draw_links(self, points: torch.Tensor, visible: torch.Tensor, radius: float) -> None:
        """Of one object: points (K, 2) in pixels, visible (K,) bool."""
        sides = self._sides(len(points))
        for first, second in self.dataset_meta.get('skeleton_links', []):
            if visible[first] and visible[second]:
                # A link to the middle has the color of its one side; one across, or in the middle, has the middle's.
                side = sides[first] + sides[second]
                color = LEFT if side > 0 else RIGHT if side < 0 else CENTER
                ends = points[[first, second]]
                self.draw_lines(ends[None, :, 0], ends[None, :, 1], colors=color, line_widths=0.8 * radius)

    def _draw_points(self, points: torch.Tensor, visible: torch.Tensor, radius: float) -> None:
        """Of one object, like :meth:`_draw_links`."""
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
