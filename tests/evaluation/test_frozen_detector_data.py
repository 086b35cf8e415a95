import json

import cv2
import numpy as np
import pytest

from ccop_mm.evaluation.frozen_detector_data import read_detection_images
from ccop_mm.utils.errors import InputError


def write(folder, images, annotations):
    path = folder / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return path


def image_entry(image_id=1, width=100, height=50, **fields):
    return dict(id=image_id, file_name=f'{image_id}.png', width=width, height=height, **fields)


def box_entry(image_id=1, bbox=(10, 20, 30, 10), category_id=4, **fields):
    return dict(image_id=image_id, bbox=list(bbox), category_id=category_id, **fields)


def test_images_with_and_without_boxes(tmp_path):
    annotations = [
        box_entry(3, (10, 20, 30, 10), 7),
        box_entry(3, (-5, 40, 25, 30), 2, iscrowd=0),  # clipped
        box_entry(3, (99.5, 0, 20, 20)),  # half a pixel remains
        box_entry(3, (0, 0, 60, 50), iscrowd=1),
        box_entry(2, (0, 0, 8, 90), iscrowd=1),
    ]
    path = write(tmp_path, [image_entry(3), image_entry(1), image_entry(2, 40, 80)], annotations)
    images = read_detection_images(path, tmp_path)
    assert [image.image_id for image in images] == [3, 1, 2]
    assert [image.annotated.path for image in images] == [tmp_path / f'{number}.png' for number in (3, 1, 2)]
    assert [image.annotated.shape for image in images] == [(50, 100), (50, 100), (80, 40)]
    np.testing.assert_array_equal(images[0].annotated.boxes, [[10, 20, 40, 30], [0, 40, 20, 50]])
    assert images[0].annotated.boxes.dtype == np.float32
    assert images[0].annotated.labels.tolist() == [7, 2]
    np.testing.assert_array_equal(images[0].crowds, [[0, 0, 60, 50]])
    for image in images[1:]:
        assert image.annotated.boxes.shape == (0, 4) and image.annotated.labels.shape == (0,)
    assert images[1].crowds.shape == (0, 4)
    np.testing.assert_array_equal(images[2].crowds, [[0, 0, 8, 80]])


@pytest.mark.parametrize(
    'shape, size, expected',
    [
        ((50, 100), 100, (100, 200)),
        ((60, 45), 100, (133, 100)),
        ((50, 300), 100, (33, 200)),  # at most twice as long as `size`
        ((300, 50), 100, (200, 33)),
        ((1, 900), 64, (1, 128)),
        ((3, 4), 64, (64, 85)),  # enlarged
    ],
)
def test_resized_shape(tmp_path, shape, size, expected):
    height, width = shape
    path = write(tmp_path, [image_entry(1, width, height)], [box_entry(1, (0, 0, width, height))])
    (image,) = read_detection_images(path, tmp_path)
    assert image.resized_shape(size) == expected
    assert image.scale_factor(size) == (expected[1] / width, expected[0] / height)
    resized = image.resized_boxes(image.annotated.boxes, size, flip=False)
    np.testing.assert_allclose(resized, [[0, 0, expected[1], expected[0]]], rtol=1e-6)


def test_boxes_follow_the_pixels(tmp_path):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[12:30, 18:60] = 255
    cv2.imwrite(str(tmp_path / '1.png'), pixels)
    path = write(tmp_path, [image_entry(1, 90, 60)], [box_entry(1, (18, 12, 42, 18))])
    (image,) = read_detection_images(path, tmp_path)
    for flip in (False, True):
        loaded = image.load(120)[:, :: -1 if flip else 1]
        assert loaded.shape == (120, 180, 3)
        y, x = np.nonzero(loaded[..., 0] > 127)
        box = image.resized_boxes(image.annotated.boxes, 120, flip)
        np.testing.assert_allclose(box, [[x.min(), y.min(), x.max() + 1, y.max() + 1]], atol=1)


def test_unreadable_images_are_skipped(tmp_path):
    cv2.imwrite(str(tmp_path / '1.png'), np.zeros((50, 90, 3), np.uint8))  # annotated with a width of 100
    images = read_detection_images(write(tmp_path, [image_entry(1), image_entry(2)], [box_entry()]), tmp_path)
    assert [image.load(64) for image in images] == [None, None]


def test_limit_is_a_fixed_subset_in_the_order_of_the_file(tmp_path):
    entries = [image_entry(number) for number in range(20, 0, -1)]
    path = write(tmp_path, entries, [box_entry(number) for number in range(1, 21)])
    chosen = [image.image_id for image in read_detection_images(path, tmp_path, limit=6)]
    assert len(chosen) == 6 and chosen == sorted(chosen, reverse=True)
    assert chosen == [image.image_id for image in read_detection_images(path, tmp_path, limit=6)]
    assert len(read_detection_images(path, tmp_path, limit=30)) == 20


@pytest.mark.parametrize(
    'images, annotations, value',
    [
        ([image_entry(5), image_entry(5)], [box_entry(5)], 'image id 5 occurs 2 times'),
        ([image_entry()], [box_entry(77)], '77'),
        ([image_entry()], [box_entry(88, iscrowd=1), box_entry()], '88'),
        ([image_entry(height=0)], [box_entry()], 'image id 1'),
        ([dict(id=4, file_name='4.png', width=8)], [box_entry(4)], 'image id 4'),
        ([image_entry()], [dict(image_id=1, bbox=[1, 2, 3, 4])], 'category_id.*None'),
        ([image_entry()], [box_entry(), box_entry(iscrowd=1, category_id='cat')], "'cat'"),
        ([image_entry()], [dict(image_id=1, bbox=[1, 2, 3], category_id=1, iscrowd=1)], r'\[1, 2, 3\]'),
        ([image_entry()], [box_entry(iscrowd=1)], 'none of 1 images'),
        ([image_entry()], None, 'annotations'),
        ([], [], 'no images'),
    ],
)
def test_invalid_annotations(tmp_path, images, annotations, value):
    with pytest.raises(InputError, match=value) as caught:
        read_detection_images(write(tmp_path, images, annotations), tmp_path)
    assert 'instances.json' in str(caught.value) and '\n' not in str(caught.value)


def test_missing_folder_and_limit(tmp_path):
    path = write(tmp_path, [image_entry()], [box_entry()])
    with pytest.raises(InputError, match='absent'):
        read_detection_images(path, tmp_path / 'absent')
    with pytest.raises(InputError, match='got 0'):
        read_detection_images(path, tmp_path, limit=0)
