import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from ccop_mm.detection import KeypointBoxes
from ccop_mm.utils.errors import InputError

COLORS = np.array([(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 0, 255)], dtype=np.uint8)  # BGR
NAMES = ('nose', 'left hand', 'right hand', 'left foot', 'right foot')
FLIP = [0, 2, 1, 4, 3]
HEIGHT, WIDTH = 120, 200
BOX = [20, 10, 180, 110]


def plot_dots(points):
    """Returns a black image with a colored dot of 7 pixels diameter at each pixel of ``points`` (K, 2)."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for color, (x, y) in zip(COLORS.tolist(), points, strict=True):
        cv2.circle(image, (int(x), int(y)), 3, color, -1)
    return image


def find_dot(image, color):
    """Returns the continuous center (x, y) of the dot of a color, or None if it is missing or cropped."""
    intensity = image[..., color > 0].min(-1) / 255
    other = image[..., color == 0].max(-1) / 255
    weight = np.where((intensity > 0.4) & (other < 0.3), intensity, 0)
    if weight.sum() < 5:
        return None
    rows, columns = np.indices(weight.shape)
    return np.array([(weight * (columns + 0.5)).sum(), (weight * (rows + 0.5)).sum()]) / weight.sum()


def load(points, flags=(2, 2, 1, 2, 2)):
    """Returns the pipeline's results after CocoKeypointDataset, LoadImageFromFile and LoadKeypointAnnotations."""
    keypoints = np.float32([(x + 0.5, y + 0.5, flag) for (x, y), flag in zip(points, flags, strict=True)])
    image = plot_dots(points)
    results = dict(
        img=image,
        img_shape=image.shape[:2],
        ori_shape=image.shape[:2],
        instances=[dict(bbox=BOX, bbox_label=0, ignore_flag=0, keypoints=keypoints)],
        flip_indices=FLIP,
    )
    return TRANSFORMS.build(dict(type='LoadKeypointAnnotations'))(results)


@pytest.fixture
def points():
    """Returns five pixels (5, 2) inside the box, far enough apart for their dots not to overlap."""
    rng = np.random.default_rng(1)
    columns = rng.permutation(5) * 32 + 30 + rng.integers(0, 20, 5)
    rows = rng.permutation(5) * 18 + 16 + rng.integers(0, 10, 5)
    return np.stack((columns, rows), axis=1)


TRANSFORM_CASES = {
    'downscale': (dict(type='Resize', scale=(133, 90), keep_ratio=True), 'same'),
    'upscale and stretch': (dict(type='Resize', scale=(330, 180), keep_ratio=False), 'same'),
    'random choice': (dict(type='RandomChoiceResize', scales=[(250, 150), (150, 90)], keep_ratio=True), 'same'),
    'horizontal': (dict(type='RandomFlip', prob=1.0, direction='horizontal'), 'swapped'),
    'vertical': (dict(type='RandomFlip', prob=1.0, direction='vertical'), 'swapped'),
    'diagonal': (dict(type='RandomFlip', prob=1.0, direction='diagonal'), 'same'),
    'crop': (dict(type='RandomCrop', crop_size=(90, 150)), 'same'),
    'crop without clipping': (dict(type='RandomCrop', crop_size=(90, 150), bbox_clip_border=False), 'same'),
    'shift': (dict(type='RandomShift', prob=1.0), 'same'),
    'rotate': (dict(type='Rotate', level=5, prob=1.0), 'same'),
    'affine': (dict(type='RandomAffine', max_rotate_degree=20, max_shear_degree=5), 'same'),
}


@pytest.mark.parametrize('name', TRANSFORM_CASES)
def test_keypoints_follow_the_image_content(points, name):
    config, sides = TRANSFORM_CASES[name]
    np.random.seed(3)
    results = TRANSFORMS.build(config)(load(points))
    boxes = results['gt_bboxes']
    height, width = results['img'].shape[:2]
    found = 0
    for color, index in zip(COLORS, FLIP if sides == 'swapped' else range(5), strict=True):
        # In a mirrored image the dot of the left hand is the keypoint of the right hand.
        x, y = boxes.keypoints[0, index].tolist()
        center = find_dot(results['img'], color)
        inside = 4 < x < width - 4 and 4 < y < height - 4
        if inside:
            assert center is not None
            # OpenCV's affine maps are defined on pixel indices instead of continuous coordinates: up to half a pixel.
            assert np.abs(center - (x, y)).max() < (0.8 if name in ('rotate', 'affine') else 0.35)
            assert boxes.visible[0, index] > 0
            found += 1
        elif name != 'crop without clipping':
            assert (boxes.visible[0, index] > 0) == (0 <= x <= width and 0 <= y <= height)
    assert found >= (2 if name.startswith('crop') else 3)
    # The third of the input flags is 1, so a swap moves it to the second keypoint.
    assert sides == 'same' or boxes.visible[0].tolist() == [2, 1, 2, 2, 2]
    assert sides != 'same' or name == 'affine' or boxes.visible[0, 1] in (0, 2)


@pytest.mark.parametrize('name', ['Mosaic', 'MixUp'])
def test_keypoints_follow_the_image_content_when_images_are_mixed(points, name):
    # All images have dots of the same colors, so each visible keypoint must be on a dot of its color.
    np.random.seed(0)
    results = load(points)
    others = [load(points[::-1].copy()) for _ in range(3)]
    results['mix_results'] = others if name == 'Mosaic' else others[:1]
    config = dict(type=name, img_scale=(WIDTH, HEIGHT))
    if name == 'MixUp':
        config.update(flip_ratio=1.0, ratio_range=(1.0, 1.0))
    results = TRANSFORMS.build(config)(results)
    boxes, image = results['gt_bboxes'], results['img']
    assert len(boxes) > 1
    checked = 0
    for keypoints, visible in zip(boxes.keypoints.tolist(), boxes.visible.tolist(), strict=True):
        for color, (x, y), flag in zip(COLORS, keypoints, visible, strict=True):
            if flag and 3 < x < image.shape[1] - 3 and 3 < y < image.shape[0] - 3:
                pixel = image[int(y), int(x)].astype(float)
                if name == 'MixUp':  # half of the brightness; sides are swapped in the mirrored image
                    checked += bool(pixel[color > 0].min() > 60) or bool(pixel[COLORS[FLIP][0] > 0].min() > 60)
                else:
                    assert pixel[color > 0].min() > 100 and pixel[color == 0].max(initial=0) < 100
                    checked += 1
    assert checked >= 4


def test_packed_fields_have_the_names_of_mmpose(points):
    results = load(points, flags=(2, 0, 1, 2, 0))
    data_sample = TRANSFORMS.build(dict(type='PackKeypointInputs'))(results)['data_samples']
    instances = data_sample.gt_instances
    assert type(instances.bboxes) is HorizontalBoxes
    assert instances.keypoints.dtype == instances.keypoints_visible.dtype == torch.float32
    assert instances.keypoints.tolist() == [(points + 0.5).tolist()]
    assert instances.keypoints_visible.tolist() == [[1, 0, 1, 1, 0]]


def test_crowds_are_packed_as_ignored_instances(points):
    results = load(points)
    crowd = dict(results['instances'][0], ignore_flag=1, bbox=[0, 0, 5, 5])
    results['instances'].append(crowd)
    results = TRANSFORMS.build(dict(type='LoadKeypointAnnotations'))(results)
    data_sample = TRANSFORMS.build(dict(type='PackKeypointInputs'))(results)['data_samples']
    for instances, box in ((data_sample.gt_instances, BOX), (data_sample.ignored_instances, [0, 0, 5, 5])):
        assert instances.bboxes.tensor.tolist() == [box]
        assert instances.keypoints.shape == (1, 5, 2) and instances.keypoints_visible.shape == (1, 5)


def test_image_without_objects_has_empty_fields(points):
    results = dict(load(points), instances=[])
    steps = [dict(type='LoadKeypointAnnotations'), dict(type='RandomFlip', prob=1.0), dict(type='PackKeypointInputs')]
    instances = Compose([TRANSFORMS.build(step) for step in steps])(results)['data_samples'].gt_instances
    assert instances.keypoints.shape == (0, 5, 2) and instances.keypoints_visible.shape == (0, 5)


def test_pipeline_runs_without_annotations():
    # As in mmdet's inferencer, which has no dataset.
    results = dict(img=np.zeros((8, 8, 3), np.uint8), img_shape=(8, 8), ori_shape=(8, 8))
    results = TRANSFORMS.build(dict(type='LoadKeypointAnnotations'))(results)
    assert len(results['gt_bboxes']) == 0
    TRANSFORMS.build(dict(type='PackKeypointInputs'))(results)
    packed = TRANSFORMS.build(dict(type='PackKeypointInputs'))(dict(img=np.zeros((8, 8, 3), np.uint8)))
    assert packed['inputs'].shape == (3, 8, 8)


def test_boxes_without_keypoints_raise(points):
    results = load(points)
    assert isinstance(results['gt_bboxes'], KeypointBoxes)
    with pytest.raises(InputError, match='HorizontalBoxes.*LoadKeypointAnnotations'):
        TRANSFORMS.build(dict(type='PackKeypointInputs'))(dict(results, gt_bboxes=HorizontalBoxes([BOX])))
    del results['instances'][0]['keypoints']
    with pytest.raises(InputError, match='keypoints.*CocoKeypointDataset'):
        TRANSFORMS.build(dict(type='LoadKeypointAnnotations'))(results)
