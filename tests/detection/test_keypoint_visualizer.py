import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from ccop_mm.detection.keypoint_visualizer import CENTER, LEFT, RIGHT
from ccop_mm.detection.skeleton import complete_metainfo

POINTS = torch.tensor([[[100.0, 40], [60, 80], [140, 80], [100, 130]]])  # top, left, right, tail


@pytest.fixture
def visualizer(kite_metainfo):
    """Returns a visualizer with the skeleton of the kites and keypoints of radius 5."""
    visualizer = VISUALIZERS.build(dict(type='KeypointLocalVisualizer', keypoint_radius=5.0, name='test'))
    visualizer.dataset_meta = complete_metainfo(kite_metainfo)
    return visualizer


def plot(visualizer, **fields):
    instances = InstanceData(bboxes=torch.tensor([[50.0, 30, 150, 140]]), labels=torch.zeros(1).long(), **fields)
    classes, palette = visualizer.dataset_meta['classes'], visualizer.dataset_meta['palette']
    return visualizer._draw_instances(np.zeros((160, 200, 3), np.uint8), instances, classes, palette)


def has_color(pixel, color):
    return np.abs(pixel.astype(int) - color).max() < 12


def test_keypoints_and_links_have_the_color_of_their_side(visualizer):
    image = plot(visualizer, keypoints=POINTS, keypoint_scores=torch.ones(1, 4), scores=torch.ones(1))
    for (x, y), color in zip(POINTS[0].long().tolist(), (CENTER, LEFT, RIGHT, CENTER), strict=True):
        assert has_color(image[y, x], color)
    for middle, color in (((80, 60), LEFT), ((120, 60), RIGHT), ((80, 105), LEFT), ((120, 105), RIGHT)):
        assert has_color(image[middle[1], middle[0]], color)
    assert not image[80, 100].any()  # left and right are not linked


def test_keypoints_below_the_threshold_and_their_links_are_not_drawn(visualizer):
    scores = torch.tensor([[1.0, 0.04, 1.0, 1.0]])
    image = plot(visualizer, keypoints=POINTS, keypoint_scores=scores, scores=torch.ones(1))
    assert not image[80, 60].any() and not image[60, 80].any()
    assert image[80, 140].any() and image[60, 120].any()


def test_ground_truth_shows_labeled_keypoints(visualizer):
    image = plot(visualizer, keypoints=POINTS, keypoints_visible=torch.tensor([[1.0, 1, 0, 1]]))
    assert image[80, 60].any() and not image[80, 140].any()


def test_instances_without_keypoints_are_drawn_by_mmdet(visualizer):
    assert plot(visualizer).any()
    empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), keypoints=torch.zeros(0, 4, 2))
    assert not visualizer._draw_instances(np.zeros((9, 9, 3), np.uint8), empty, None, None).any()


def test_figure_shows_ground_truth_and_prediction_side_by_side(visualizer, tmp_path):
    data = DetDataSample()
    fields = dict(bboxes=torch.tensor([[50.0, 30, 150, 140]]), labels=torch.zeros(1).long(), keypoints=POINTS)
    data.gt_instances = InstanceData(**fields, keypoints_visible=torch.ones(1, 4))
    data.pred_instances = InstanceData(**fields, keypoint_scores=torch.ones(1, 4), scores=torch.tensor([0.9]))
    visualizer.add_datasample('x', np.zeros((160, 200, 3), np.uint8), data, out_file=str(tmp_path / 'x.png'))
    figure = cv2.imread(str(tmp_path / 'x.png'))[..., ::-1]
    assert figure.shape == (160, 400, 3)
    assert has_color(figure[80, 60], LEFT) and has_color(figure[80, 260], LEFT)
