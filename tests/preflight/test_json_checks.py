"""Content of a COCO json: each fault is made, and the line is checked."""

import math
import re

import numpy as np
import pytest
from detector_checks import annotation, check, check_test, check_training, every, the_line, without
from small_detector import HEIGHT, WIDTH, detector_config, edit_json

from ccop_mm.preflight.findings import Level
from ccop_mm.preflight.json_checks import infer_convention


def as_corners(row):
    row['bbox'] = [row['bbox'][0], row['bbox'][1], row['bbox'][0] + row['bbox'][2], row['bbox'][1] + row['bbox'][3]]


def as_center(row):
    row['bbox'] = [
        row['bbox'][0] + row['bbox'][2] / 2,
        row['bbox'][1] + row['bbox'][3] / 2,
        row['bbox'][2],
        row['bbox'][3],
    ]


def as_normalized(row):
    row['bbox'] = [value / side for value, side in zip(row['bbox'], [WIDTH, HEIGHT] * 2, strict=True)]


FAULTY_JSON = {
    'corners': (every(as_corners), Level.ERROR, r'\(x1, y1, x2, y2\)'),
    'center': (every(as_center), Level.ERROR, 'center x'),
    'normalized': (every(as_normalized), Level.ERROR, 'relative'),
    'unknown_category': (annotation(category_id=4), Level.ERROR, r'category_id.* 1$|1 of 72.*category_id'),
    'unknown_image': (annotation(image_id=999), Level.WARNING, '1 of 72.*image_id'),
    'unknown_images': (every(lambda row: row.update(image_id=str(row['image_id']))), Level.ERROR, '72 of 72.*image_id'),
    'duplicate_image': (
        lambda content: content['images'].append(dict(content['images'][0], file_name='train001.jpg')),
        Level.ERROR,
        '1 image ids.*1',
    ),
    'duplicate_annotation': (annotation(4, id=1), Level.ERROR, '1 annotation ids.*1'),
    'nan': (annotation(3, bbox=[1, 2, math.nan, 4]), Level.ERROR, '1 of 72.*NaN.* 4'),
    'infinity': (annotation(3, bbox=[1, 2, math.inf, 4]), Level.ERROR, '1 of 72.*infinity.* 4'),
    'short_box': (annotation(2, bbox=[1, 2, 3]), Level.ERROR, '1 of 72.*bbox.* 3'),
    'text_box': (annotation(2, bbox=[1, 2, 3, None]), Level.ERROR, '1 of 72.*(bbox|NaN).* 3'),
    'missing_box': (without('bbox'), Level.ERROR, '1 of 72.*bbox.* 1'),
    'no_area': (annotation(5, bbox=[10, 10, 0, 5]), Level.WARNING, '1 of 72 boxes have no area.* 6'),
    'negative': (annotation(5, bbox=[10, 10, -4, 5]), Level.WARNING, '1 of 72 boxes have no area.* 6'),
    'all_negative': (
        every(lambda row: row.update(bbox=[10, 10, -4, 5])),
        Level.ERROR,
        '72 of 72 boxes have no area',
    ),
    'outside': (annotation(6, bbox=[80, 10, 9, 9]), Level.WARNING, '1 of 72 boxes are outside.* 7'),
    'exceeding': (annotation(7, bbox=[50, 10, 30, 9]), Level.WARNING, '1 of 72 boxes exceed.* 8'),
    'missing_area': (without('area', count=2), Level.WARNING, r'2 of 72.*"area".* 1, 2\b'),
    'area_0': (annotation(8, area=0), Level.WARNING, '1 of 72.*"area" of 0.* 9'),
    'all_areas_0': (every(lambda row: row.update(area=0)), Level.ERROR, '72 of 72.*"area" of 0'),
    'missing_crowd_flag': (without('iscrowd'), Level.WARNING, '1 of 72.*"iscrowd".* 1'),
    'missing_size': (without('width', 'images'), Level.ERROR, '1 of 24 images.*"width".*train000.jpg'),
    'size_0': (lambda content: content['images'][2].update(height=0), Level.ERROR, '1 of 24 images.*train002.jpg'),
    'no_annotations': (lambda content: content.update(annotations=[]), Level.ERROR, 'cat, dog, horse'),
    'number_as_text_in_box': (annotation(2, bbox=[1, 2, '3', 4]), Level.ERROR, '1 of 72.*bbox.* 3'),
    'boxes_of_text': (every(lambda row: row.update(bbox=['1', '2', '3', '4'])), Level.ERROR, '72 of 72.*bbox'),
    'bool_in_box': (annotation(2, bbox=[1, 2, 3, True]), Level.ERROR, '1 of 72.*bbox.* 3'),
    'crowd_flag_as_text': (annotation(8, iscrowd='0'), Level.ERROR, '1 of 72.*"iscrowd" that is not a number.* 9'),
    'groups_only': (every(lambda row: row.update(iscrowd=1)), Level.ERROR, 'all 72 objects.*"iscrowd"'),
    'percent': (
        every(lambda row: row.update(bbox=[value / 4 for value in row['bbox']])),
        Level.WARNING,
        r'no box reaches beyond \d\d%',
    ),
    'area_as_text': (annotation(8, area='5'), Level.ERROR, '1 of 72.*"area" that is not a number.* 9'),
    'areas_of_text': (every(lambda row: row.update(area='5')), Level.ERROR, '72 of 72.*"area" that is not a number'),
    'size_as_text': (lambda content: content['images'][2].update(width='64'), Level.ERROR, '1 of 24 images.*train002'),
    'sizes_of_text': (
        lambda content: [image.update(height='48') for image in content['images']],
        Level.ERROR,
        '24 of 24 images.*train000',
    ),
}


@pytest.mark.parametrize('kind', FAULTY_JSON)
def test_faulty_json(root, kind):
    change, level, pattern = FAULTY_JSON[kind]
    edit_json(root / 'train.json', change)
    report = check(root)
    (line,) = map(str, report.errors if level is Level.ERROR else report.findings)
    assert line.startswith(level.value) and re.search(pattern, line), line
    assert f'{root}/train.json' in line


def test_test_data_has_the_same_checks(root):
    edit_json(root / 'val.json', every(as_corners))
    assert 'val.json' in the_line(check_test(root), Level.ERROR)


def test_annotation_id_0_is_no_problem(root):
    edit_json(root / 'train.json', annotation(id=0))
    assert check(root).findings == []


def add_polygon(row):
    x, y, width, height = row['bbox']
    row['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]


def test_missing_masks(root):
    edit_json(root / 'train.json', every(add_polygon))
    edit_json(root / 'train.json', annotation(3, segmentation=[]))
    assert check(root).findings == []
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    report = check_training(cfg)
    assert re.search('1 of 72.*"segmentation".* 4', the_line(report, Level.ERROR))
    line = the_line(check(root, **{'val_evaluator.metric': ['bbox', 'segm']}), Level.ERROR)
    assert 'val_evaluator.metric' in line and '36 of 36' in line


@pytest.mark.parametrize('seed', range(20))
def test_convention_is_inferred(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 1000, (60, 2)).astype(float)
    sides = rng.uniform(0.02, 1, (60, 2)) * sizes
    corners = rng.random((60, 2)) * (sizes - sides)
    boxes = np.concatenate([corners, sides], axis=1)
    assert infer_convention(boxes, sizes) is None
    twice = np.tile(sizes, 2)
    opposite = np.concatenate([corners, corners + sides], axis=1)
    for values, name in (
        (opposite, 'x2'),
        (np.concatenate([corners + sides / 2, sides], axis=1), 'center'),
        (boxes / twice, 'relative'),
        (opposite / twice, 'relative'),
    ):
        convention, example = infer_convention(values, sizes)
        assert name in convention
        is_relative = values.max(axis=1) <= 1.5
        exceeds = (values[:, :2] + values[:, 2:] > sizes + 2).any(axis=1)
        assert example == np.flatnonzero(is_relative if name == 'relative' else exceeds)[0]
    # Boxes that exceed their image slightly are no other convention.
    boxes[:, 2:] += rng.uniform(0, 1.5, (60, 2))
    assert infer_convention(boxes, sizes) is None
    assert infer_convention(np.zeros((0, 4)), np.zeros((0, 2))) is None


@pytest.mark.parametrize(
    ('change', 'shown'), [(as_corners, '(30, 20, 50, 40)'), (as_normalized, '(0.46875, 0.416667, 0.3125, 0.416667)')]
)
def test_example_is_a_box_that_contradicts_the_convention_of_coco(root, change, shown):
    def edit(content):
        rows = content['annotations']
        for row in rows[1:]:
            row['bbox'] = [30, 20, 20, 20]
            change(row)
        rows[0]['bbox'] = [2, 2, 10, 10]  # possible in both

    edit_json(root / 'train.json', edit)
    line = the_line(check(root), Level.ERROR)
    assert f'{shown} of annotation 2' in line
