"""Readers of COCO json files."""

import json
import re

import numpy as np
import pytest

from ccop_mm.utils.coco_json import (
    class_names,
    read_annotated_images,
    read_boxes,
    read_images,
    read_json,
    read_objects,
)
from ccop_mm.utils.errors import InputError


def annotation(image_id, bbox, category_id=1, **extra):
    return {'image_id': image_id, 'bbox': bbox, 'category_id': category_id, **extra}


def image(image_id, width=20, height=10):
    return {'id': image_id, 'file_name': f'{image_id}.png', 'width': width, 'height': height}


def write(folder, content):
    path = folder / 'instances.json'
    path.write_text(json.dumps(content))
    return path


def write_annotations(folder, images, annotations):
    return write(folder, {'images': images, 'annotations': annotations})


def assert_rejected(match, function, *args):
    with pytest.raises(InputError, match=match) as caught:
        function(*args)
    assert '\n' not in str(caught.value)


def test_read_json_returns_objects_only(tmp_path):
    assert read_json(write(tmp_path, {'images': []})) == {'images': []}
    assert_rejected('absent.json', read_json, tmp_path / 'absent.json')
    assert_rejected(str(tmp_path), read_json, tmp_path)
    assert_rejected('instances.json .*list', read_json, write(tmp_path, [1]))
    (tmp_path / 'text.json').write_text('{"images": ')
    assert_rejected('text.json is not JSON', read_json, tmp_path / 'text.json')


def test_read_images_validates_the_entries():
    images = [image(0), {'id': 2**63 - 1, 'file_name': 'x.png'}]
    assert read_images({'images': images}, 'x.json') == images
    for content in ({}, {'images': []}, {'images': {}}):
        assert_rejected('x.json .*"images"', read_images, content, 'x.json')
    for entry in ({'id': 7}, {'file_name': 'a'}, {**image(7), 'id': '7'}, {**image(7), 'id': 2**63}, image(-1), 7):
        shown = f'x.json.*{re.escape(json.dumps(entry)[:100])}'
        assert_rejected(shown, read_images, {'images': [image(1), entry]}, 'x.json')


def test_read_boxes_groups_by_image_without_crowds():
    entries = [
        annotation(3, [1, 2, 3, 4], score=0.5),
        annotation(7, [0, 0, 0, 4]),
        annotation(3, [0, 0, 20, 10], iscrowd=1),
        annotation(3, [5, 5, 1.5, 2]),
    ]
    boxes = read_boxes(entries, 'x.json')
    assert list(boxes) == [3, 7]
    assert [box.bbox for box in boxes[3]] == [(1, 2, 3, 4), (5, 5, 1.5, 2)]
    assert [box.xyxy for box in boxes[3]] == [(1, 2, 4, 6), (5, 5, 6.5, 7)]
    assert [box.has_area for box in (*boxes[3], *boxes[7])] == [True, True, False]
    assert boxes[3][0].entry['score'] == 0.5


@pytest.mark.parametrize(
    'entry', [5, {'image_id': 1}, {'bbox': [1, 2, 3, 4]}, annotation(1, [1, 2]), annotation(1, 'abcd')]
)
def test_read_boxes_reports_the_invalid_entry(entry):
    assert_rejected(
        f'x.json.*{re.escape(json.dumps(entry))}', read_boxes, [annotation(1, [1, 2, 3, 4]), entry], 'x.json'
    )


def test_read_boxes_requires_a_list():
    for entries in (None, {}, 'abc'):
        assert_rejected('x.json .*"annotations"', read_boxes, entries, 'x.json')


def test_class_names(tmp_path):
    categories = [{'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat', 'supercategory': 'animal'}]
    assert class_names(write(tmp_path, {'categories': categories})) == {3: 'cat', 7: 'dog'}
    assert class_names(write(tmp_path, {})) == {}
    assert_rejected('instances.json.*"categories"', class_names, write(tmp_path, {'categories': [{'id': 7}]}))
    assert_rejected('absent.json', class_names, tmp_path / 'absent.json')


def test_objects_are_unclipped_boxes_with_area(tmp_path):
    annotations = [
        annotation(3, [-1, 2, 30, 4.5]),
        annotation(3, [0, 0, 9, 9], iscrowd=1),
        annotation(3, [5, 5, 0, 4]),
        annotation(7, [5, 5, -3, 4]),
    ]
    images, objects = read_objects(write_annotations(tmp_path, [image(7), image(3)], annotations))
    assert images == [image(7), image(3)]
    assert list(objects) == [3]
    assert objects[3].dtype == np.float64 and objects[3].tolist() == [[-1, 2, 29, 6.5]]


def test_annotated_boxes_are_assigned_to_their_image_and_clipped(tmp_path):
    images = [image(7), image(3), image(5)]
    annotations = [
        annotation(3, [1, 2, 3, 4], 9),
        annotation(7, [-2, 4, 30, 3], 8),
        annotation(3, [0, 0, 20, 10], 2, iscrowd=1),
        annotation(3, [15, 5, 5, 50], 4),
    ]
    first, second = read_annotated_images(write_annotations(tmp_path, images, annotations), tmp_path)
    assert (first.path, first.shape) == (tmp_path / '7.png', (10, 20))
    np.testing.assert_array_equal(first.boxes, [[0, 4, 20, 7]])
    np.testing.assert_array_equal(second.boxes, [[1, 2, 4, 6], [15, 5, 20, 10]])
    assert first.labels.tolist() == [8]
    assert second.labels.tolist() == [9, 4]
    assert (first.boxes.dtype, first.labels.dtype) == (np.float32, np.int64)


def test_small_annotated_boxes_are_dropped_and_counted(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda line, *_: lines.append(line))
    annotations = [
        annotation(1, [5, 5, 1, 1]),
        annotation(1, [5, 5, 0.9, 4]),
        annotation(1, [19.5, 2, 8, 4]),  # half a pixel wide after clipping
        annotation(1, [30, 2, 8, 4]),  # outside
        annotation(1, [5, 5, -3, 4]),
    ]
    path = write_annotations(tmp_path, [image(1)], annotations)
    (annotated,) = read_annotated_images(path, tmp_path)
    np.testing.assert_array_equal(annotated.boxes, [[5, 5, 6, 6]])
    assert len(lines) == 1 and re.search(r'instances\.json.* 4 boxes .* 1 px', lines[0])


def test_invalid_annotated_images_are_rejected(tmp_path):
    valid = annotation(1, [1, 1, 5, 5])
    path = write_annotations(tmp_path, [image(1)], [valid])
    assert_rejected('/absent .*instances.json', read_annotated_images, path, tmp_path / 'absent')
    assert_rejected('absent.json', read_annotated_images, tmp_path / 'absent.json', tmp_path)
    for images, annotations, match in (
        ([image(1)], [{**valid, 'iscrowd': 1}], 'no usable box'),
        ([image(1)], [], 'no usable box'),
        ([image(1)], [annotation(2, [1, 1, 5, 5])], '1 image ids .* 2$'),
        ([image(1)], [{'image_id': 1}], '{"image_id": 1}'),
        ([image(1)], [{'image_id': 1, 'bbox': [1, 1, 5, 5]}], '"category_id"'),
        ([image(1)], None, '"annotations"'),
        ([{'id': 1, 'file_name': 'a.png'}], [valid], '"images" .*"width"'),
        (None, [valid], '"images"'),
    ):
        path = write_annotations(tmp_path, images, annotations)
        assert_rejected(f'instances.json.*{match}', read_annotated_images, path, tmp_path)
