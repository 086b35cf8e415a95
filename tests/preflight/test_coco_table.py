"""Structure of a COCO json, and its values as arrays."""

import json
import re

import numpy as np
import pytest
from detector_checks import annotation, check, the_line, without
from small_detector import edit_json

from ccop_mm.preflight import coco_table
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


@pytest.mark.parametrize(
    ('ids', 'references'),
    [
        ([7, 3, 5], [5, 7, 4, 3, 9, -1, 5]),
        (['b', 'a'], ['a', 'c', 'b']),
        ([1, '1'], ['1', 1, 2]),
        ([1, 2], [2.0, 1.5, 1, '1']),
        ([2**70, 1], [1, 2**70, 2]),
        ([1, 2], [2, 2**70]),
        ([], [1]),
        ([3], []),
    ],
    ids=str,
)
def test_rows_of_ids(ids, references):
    expected = [ids.index(reference) if reference in ids else -1 for reference in references]
    assert coco_table._RowIndex(ids).find(references).tolist() == expected


def test_conversion_in_chunks(root, monkeypatch):
    content = json.loads((root / 'train.json').read_text())
    # Other types in some of the chunks only.
    content['annotations'][3]['area'] = '5'
    content['annotations'][7]['image_id'] = 'unknown'
    del content['annotations'][9]['bbox']
    tables = []
    for size in (1, 4, 1000):
        monkeypatch.setattr(coco_table, 'CHUNK_SIZE', size)
        tables.append(CocoTable.from_json(content, 'x.json'))
    assert tables[0].num_annotations == 72 and (tables[0].image_rows == -1).sum() == 1
    for table in tables[1:]:
        for name, value in vars(tables[0]).items():
            np.testing.assert_array_equal(getattr(table, name), value)
