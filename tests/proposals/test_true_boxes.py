"""Annotated boxes in the place of proposals."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import BadPhoto, Photo
from ccop_mm.proposals.true_boxes import AnnotatedPhoto, annotate, true_boxes


@pytest.fixture
def annotations(tmp_path):
    images = [{'id': 3, 'file_name': 'a.png', 'height': 40, 'width': 50}, {'id': 4, 'file_name': 'b.png'}]
    objects = [
        {'image_id': 3, 'bbox': [1, 2.25, 10, 60]},
        {'image_id': 3, 'bbox': [0, 0, 9, 9], 'iscrowd': 1},
        {'image_id': 3, 'bbox': [0, 0, 0, 9]},
        {'image_id': 3, 'bbox': [60, 0, 9, 9]},
    ]
    path = tmp_path / 'x.json'
    path.write_text(json.dumps({'images': images, 'annotations': objects}))
    return path


def test_photos_are_matched_by_name_and_boxes_cut_to_them(annotations):
    photos = [Photo(100 + i, name, Path(name)) for i, name in enumerate(('b.png', 'a.png', 'c.png'))]
    (b, a, c), digest = annotate(photos, annotations)
    assert [(p.image_id, p.file_name, p.path, str(p)) for p in (b, a, c)] == [
        (p.image_id, p.file_name, p.path, p.file_name) for p in photos
    ]
    assert digest == hashlib.blake2b(annotations.read_bytes(), digest_size=16).hexdigest()
    assert true_boxes(a, (40, 50)).tolist() == [[1, 2.25, 11, 40]]
    assert true_boxes(a, (40, 50)).dtype == np.float32
    assert true_boxes(b, (7, 9)).shape == (0, 4)  # the json does not say how large it is
    with pytest.raises(BadPhoto, match='do not list it'):
        true_boxes(c, (40, 50))
    with pytest.raises(BadPhoto, match='40x50 pixels, but 50x40 in the annotations: .* EXIF'):
        true_boxes(a, (50, 40))


def test_annotations_of_other_photos(annotations):
    with pytest.raises(InputError, match='lists none of the photos, the first of which is z.png'):
        annotate([Photo(1, 'z.png', Path('z.png'))], annotations)


def test_annotated_photos_are_equal_by_what_they_are():
    assert AnnotatedPhoto(1, 'a', Path('a'), np.zeros((1, 4))) == AnnotatedPhoto(1, 'a', Path('a'), np.ones((2, 4)))
