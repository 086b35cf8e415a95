"""COCO json files of a study."""

import json

import pytest

from ccop_mm.label_efficiency.annotations import AnnotationFile, read_annotations, read_classes
from ccop_mm.utils.errors import InputError

CONTENT = dict(
    images=[dict(id=number, file_name=f'{number}.jpg', width=64, height=48) for number in (3, 5, 7)],
    annotations=[
        dict(id=1, image_id=3, category_id=2, bbox=[1, 2, 10, 20], iscrowd=0, area=150, segmentation=[]),
        dict(id=2, image_id=3, category_id=4, bbox=[0, 0, 5, 5]),
        dict(id=3, image_id=5, category_id=9, bbox=[0, 0, 5, 6], iscrowd=0, area=30),
        dict(id=4, image_id=7, category_id=4, bbox=[0, 0, 5, 5], iscrowd=1, area=25),
    ],
    categories=[dict(id=2, name='cat'), dict(id=4, name='dog'), dict(id=9, name='horse')],
)


@pytest.fixture
def write(tmp_path):
    """``write(**changes)`` writes the content with changes; returns the file and its folder."""

    def write(**changes):
        path = tmp_path / 'annotations.json'
        path.write_text(json.dumps({**CONTENT, **changes}))
        return AnnotationFile(str(path), str(tmp_path))

    return write


def test_boxes_of_the_classes_are_kept(write):
    read = read_annotations(write(), ['dog', 'cat'])
    assert read.image_ids == [3, 5, 7]  # images without boxes, too
    first, second, crowd = read.content['annotations']
    assert first == CONTENT['annotations'][0]
    assert second == {**CONTENT['annotations'][1], 'area': 25, 'iscrowd': 0}
    assert crowd['id'] == 4 and read.annotated_ids == {3}
    assert [category['name'] for category in read.content['categories']] == ['cat', 'dog']


def test_class_agnostic(write):
    read = read_annotations(write(), ['cat', 'horse'], class_agnostic=True)
    assert read.content['categories'] == [dict(id=1, name='object')]
    assert [(entry['id'], entry['category_id']) for entry in read.content['annotations']] == [(1, 1), (3, 1)]
    assert read.digest != read_annotations(write(), ['cat', 'horse']).digest


def test_subsets_are_written_once(write, tmp_path):
    read = read_annotations(write(), ['cat', 'dog', 'horse'])
    path = read.write(tmp_path / 'out' / 'subset.json', [7, 3])
    content = json.loads(path.read_text())
    assert [image['id'] for image in content['images']] == [3, 7]
    assert [entry['id'] for entry in content['annotations']] == [1, 2, 4]
    assert content['categories'] == CONTENT['categories']
    written = path.stat().st_mtime_ns
    read.write(path, [3])
    assert path.stat().st_mtime_ns == written
    assert json.loads(read.write(tmp_path / 'all.json').read_text()) == read.content


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        (dict(images=[]), 'images'),
        (dict(annotations=[dict(image_id=3, category_id=2)]), 'bbox'),
        (dict(annotations=[dict(id=8, image_id=3, category_id=1, bbox=[0, 0, 1, 1])]), 'annotation 8 .* 1'),
        (dict(annotations=[]), 'no box of cat'),
        (dict(annotations=CONTENT['annotations'][3:]), 'no box of cat'),
        (dict(categories=[dict(id=2)]), 'categories'),
    ],
)
def test_invalid_files(changes, named, write):
    with pytest.raises(InputError, match=named):
        read_annotations(write(**changes), ['cat', 'dog', 'horse'])


def test_missing_folder(write, tmp_path):
    with pytest.raises(InputError, match='absent'):
        read_annotations(AnnotationFile(write().path, str(tmp_path / 'absent')), ['cat'])


def test_classes(write):
    assert read_classes(write().path) == ['cat', 'dog', 'horse']
    for categories in ([], [dict(id=1, name='cat'), dict(id=2, name='cat')]):
        with pytest.raises(InputError, match='annotations.json'):
            read_classes(write(categories=categories).path)
