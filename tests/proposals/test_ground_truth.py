"""Ground-truth boxes as candidates."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ccop_mm.proposals import ImageFile, UnreadableImageError
from ccop_mm.proposals.ground_truth import AnnotatedImageFile, annotate, ground_truth_boxes
from ccop_mm.utils.errors import InputError


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


def test_images_are_matched_by_file_name_and_boxes_are_clipped(annotations):
    images = [ImageFile(100 + i, name, Path(name)) for i, name in enumerate(('b.png', 'a.png', 'c.png'))]
    (b, a, c), digest = annotate(images, annotations)
    assert [(i.image_id, i.file_name, i.path, str(i)) for i in (b, a, c)] == [
        (i.image_id, i.file_name, i.path, i.file_name) for i in images
    ]
    assert digest == hashlib.blake2b(annotations.read_bytes(), digest_size=16).hexdigest()
    assert ground_truth_boxes(a, (40, 50)).tolist() == [[1, 2.25, 11, 40]]
    assert ground_truth_boxes(a, (40, 50)).dtype == np.float32
    assert ground_truth_boxes(b, (7, 9)).shape == (0, 4)  # the json does not state its size
    with pytest.raises(UnreadableImageError, match='not list'):
        ground_truth_boxes(c, (40, 50))
    with pytest.raises(UnreadableImageError, match='40x50 pixels.* 50x40'):
        ground_truth_boxes(a, (50, 40))


def test_annotations_of_other_images_are_rejected(annotations):
    with pytest.raises(InputError, match=r'x\.json .*z\.png'):
        annotate([ImageFile(1, 'z.png', Path('z.png'))], annotations)


def test_equality_ignores_the_boxes():
    assert AnnotatedImageFile(1, 'a', Path('a'), np.zeros((1, 4))) == AnnotatedImageFile(
        1, 'a', Path('a'), np.ones((2, 4))
    )
