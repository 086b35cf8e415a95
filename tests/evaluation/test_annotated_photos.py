import json

import numpy as np
import pytest

from ccop_mm.errors import InputError
from ccop_mm.evaluation.annotated_photos import read_annotated_photos


def annotation(image_id, bbox, category_id=1, **extra):
    return {'image_id': image_id, 'bbox': bbox, 'category_id': category_id, **extra}


def write(folder, images, annotations):
    path = folder / 'instances.json'
    path.write_text(json.dumps({'images': images, 'annotations': annotations}))
    return path


def image(image_id, width=20, height=10):
    return {'id': image_id, 'file_name': f'{image_id}.png', 'width': width, 'height': height}


def test_boxes_go_to_their_photo_and_are_clipped(tmp_path):
    images = [image(7), image(3), image(5)]
    annotations = [
        annotation(3, [1, 2, 3, 4], 9),
        annotation(7, [-2, 4, 30, 3], 8),
        annotation(3, [0, 0, 20, 10], 2, iscrowd=1),
        annotation(3, [15, 5, 5, 50], 4),
    ]
    first, second = read_annotated_photos(write(tmp_path, images, annotations), tmp_path)
    assert (first.path, first.shape) == (tmp_path / '7.png', (10, 20))
    np.testing.assert_array_equal(first.boxes, [[0, 4, 20, 7]])
    np.testing.assert_array_equal(second.boxes, [[1, 2, 4, 6], [15, 5, 20, 10]])
    assert first.labels.tolist() == [8]
    assert second.labels.tolist() == [9, 4]


def test_tiny_boxes_are_dropped_and_counted(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.evaluation.annotated_photos.print_log', lambda line, *_: lines.append(line))
    annotations = [
        annotation(1, [5, 5, 1, 1]),
        annotation(1, [5, 5, 0.9, 4]),
        annotation(1, [19.5, 2, 8, 4]),  # half a pixel wide once clipped
        annotation(1, [30, 2, 8, 4]),  # outside
        annotation(1, [5, 5, -3, 4]),
    ]
    (photo,) = read_annotated_photos(write(tmp_path, [image(1)], annotations), tmp_path)
    np.testing.assert_array_equal(photo.boxes, [[5, 5, 6, 6]])
    assert [line.rpartition(': ')[2] for line in lines] == ['4 boxes under 1 px dropped']


def test_bad_input(tmp_path):
    good = write(tmp_path, [image(1)], [annotation(1, [1, 1, 5, 5])])
    with pytest.raises(InputError, match='no such folder'):
        read_annotated_photos(good, tmp_path / 'absent')
    with pytest.raises(InputError, match='absent.json'):
        read_annotated_photos(tmp_path / 'absent.json', tmp_path)
    with pytest.raises(InputError, match='no usable box'):
        read_annotated_photos(write(tmp_path, [image(1)], [annotation(1, [1, 1, 5, 5], iscrowd=1)]), tmp_path)
    with pytest.raises(InputError, match='1 image ids of annotations are not among the images'):
        read_annotated_photos(write(tmp_path, [image(1)], [annotation(2, [1, 1, 5, 5])]), tmp_path)
    with pytest.raises(InputError, match="not in COCO format .KeyError: 'bbox'"):
        read_annotated_photos(write(tmp_path, [image(1)], [{'image_id': 1}]), tmp_path)
