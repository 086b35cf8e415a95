"""Structure of a COCO json, and its values as arrays."""

import re

import numpy as np
import pytest
from detector_checks import annotation, check, the_line, without
from small_detector import edit_json

from ccop_mm.preflight.coco_table import CocoTable
from ccop_mm.preflight.findings import Level


@pytest.mark.parametrize(
    ('change', 'pattern'),
    [
        (lambda content: content.update(images=[]), 'images'),
        (without('id', 'images'), '"id"'),
        (without('category_id'), '"category_id"'),
        (annotation(image_id=[1]), r'"image_id".*\[1\]'),
    ],
    ids=['no_images', 'images_without_id', 'annotation_without_category', 'list_as_id'],
)
def test_structure_of_another_format(root, change, pattern):
    edit_json(root / 'train.json', change)
    line = the_line(check(root), Level.ERROR)
    assert re.search(pattern, line) and f'{root}/train.json' in line


def table(annotations, **image):
    images = [{'id': 1, 'file_name': '1.jpg', 'width': 64, 'height': 48, **image}]
    rows = [dict(id=number, image_id=1, category_id=1, **row) for number, row in enumerate(annotations)]
    return CocoTable.from_json(dict(images=images, annotations=rows, categories=[dict(id=1, name='a')]), 'x.json')


def test_values_are_converted():
    found = table([dict(bbox=[1, 2, 3, 4.5], area=5), dict(bbox=[0, 0, 1, 1], area=0.5)])
    np.testing.assert_array_equal(found.sizes, [[64, 48]])
    np.testing.assert_array_equal(found.boxes, [[1, 2, 3, 4.5], [0, 0, 1, 1]])
    np.testing.assert_array_equal(found.areas, [5, 0.5])
    assert found.has_box.all() and found.has_area.all() and found.has_numeric_area.all()


@pytest.mark.parametrize('value', ['1', True, None, [1]])
@pytest.mark.parametrize('others', [0, 1], ids=['all', 'one of two'])
def test_other_types_are_no_numbers(value, others):
    valid = [dict(bbox=[1, 2, 3, 4], area=5)] * others
    assert np.isnan(table([], width=value).sizes[0, 0])
    boxes = table([dict(bbox=[1, 2, 3, value]), *valid])
    assert boxes.has_box.tolist() == [False] + [True] * others and np.isnan(boxes.boxes[0]).all()
    areas = table([dict(area=value), *valid])
    assert areas.has_numeric_area.tolist() == [False] + [True] * others and np.isnan(areas.areas[0])
    assert areas.has_area[0] == (value is not None)
