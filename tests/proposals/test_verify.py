"""Verification of a proposals file against its images: each kind of problem is reported."""

import json
import re

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore, generate_proposals, list_images
from ccop_mm.proposals.verify import verify
from ccop_mm.utils.errors import InputError


@pytest.fixture
def folder_and_store(image_folder, tmp_path):
    """A folder with one unreadable image, and its proposals."""
    (image_folder / 'bad.jpg').write_text('not an image')
    generate_proposals(list_images(image_folder), tmp_path / 'x.npz', workers=1, progress=False, max_boxes=9)
    return image_folder, ProposalStore.load(tmp_path / 'x.npz')


def modified(store, name, boxes=None, **metadata):
    """Returns the store with other boxes of one image, or other metadata."""
    entries = [(*entry[:3], boxes if entry[1] == name else entry[3]) for entry in store.entries()]
    digests = {image_id: store.digest(image_id) for image_id in store.image_ids.tolist()}
    return ProposalStore(entries, store.skipped, {**store.metadata, **metadata}, digests)


def problems(store, folder, **options):
    return verify(store, list_images(folder), **options).problems


def test_matching_store_has_no_problems(folder_and_store):
    folder, store = folder_and_store
    report = verify(store, list_images(folder), again=3, workers=2)
    assert report.problems == []
    assert (report.num_images, report.num_skipped, report.num_same_bytes, report.num_regenerated) == (8, 1, 7, 3)
    assert report.num_boxes == store.num_boxes.sum()
    text = str(report)
    for line in (
        '  without boxes    1 (0 without proposals, 1 skipped)',
        'problems           0',
        'mode fast',
        'opencv ',
    ):
        assert line in text


def test_added_removed_and_changed_images_are_reported(folder_and_store, scene):
    folder, store = folder_and_store
    (folder / 'scene_0.png').rename(folder / 'renamed.png')
    cv2.imwrite(str(folder / 'scene_1.png'), scene(70, *store.size(store.image_id('scene_1.png'))))
    cv2.imwrite(str(folder / 'scene_2.png'), scene(2, 30, 40))
    (folder / 'scene_3.png').write_text('no longer an image')
    (folder / 'bad.jpg').unlink()
    found = '\n'.join(problems(store, folder))
    for pattern in (
        r'^renamed\.png \(id ',
        r'^scene_0\.png \(id ',
        r'^bad\.jpg \(skipped\)',
        r'^scene_1\.png: the file has changed',
        r'^scene_2\.png: 40x30 .* 86x68',
        r'^scene_3\.png: not a whole image',
    ):
        assert re.search(pattern, found, re.MULTILINE), pattern
    assert found.count('\n') == 5


def test_ids_of_another_source_are_reported(folder_and_store, tmp_path):
    folder, store = folder_and_store
    images = [{'id': image_id, 'file_name': 'scene_1.png'} for image_id in store.image_ids.tolist()[:1]]
    (tmp_path / 'x.json').write_text(json.dumps({'images': images}))
    found = verify(store, list_images(tmp_path / 'x.json', folder)).problems
    assert any(f'id {images[0]["id"]} is ' in line and 'scene_1.png' in line for line in found)


@pytest.mark.parametrize(
    ('boxes', 'problem'),
    [
        ([[0, 0, 200, 30]], '1 of 1 boxes are outside the image'),
        ([[-1, 0, 20, 30]], '1 of 1 boxes are outside the image'),
        ([[0, 0, 20, np.nan]], '1 of 1 boxes are outside the image'),
        ([[0, 0, 20, 20], [5, 5, 5, 9]], '1 of 2 boxes have no area'),
        ([[0, 0, 11, 13]], '1 of 1 boxes have an area below 144 square pixels'),
        ([[0, 0, 60, 20]], '1 of 1 boxes have an aspect ratio of 3 or more'),
        ([[i, 0, 20 + i, 20] for i in range(11)], '2 of 11 boxes exceed the maximum of 9'),
    ],
)
def test_invalid_boxes_are_reported(folder_and_store, boxes, problem):
    folder, store = folder_and_store
    assert f'scene_4.png: {problem}' in problems(modified(store, 'scene_4.png', boxes), folder)


def test_boxes_of_another_image_are_detected_by_regeneration(folder_and_store):
    folder, store = folder_and_store
    other = modified(store, 'scene_4.png', store.boxes(store.image_id('scene_3.png')))
    assert problems(other, folder) == []  # only regeneration detects it
    (problem,) = problems(other, folder, again=100)
    assert problem.startswith('scene_4.png: ') and cv2.__version__ in problem


def test_imported_boxes_have_no_limits_and_cannot_be_regenerated(folder_and_store):
    folder, store = folder_and_store
    imported = ProposalStore(store.entries(), store.skipped, {'method': 'imported'})
    report = verify(modified(imported, 'scene_4.png', [[0, 0, 3, 3]]), list_images(folder))
    assert (report.problems, report.num_same_bytes) == ([], 0)  # the sizes were compared instead
    with pytest.raises(InputError, match='again'):
        verify(imported, list_images(folder), again=1)
    (folder / 'scene_2.png').write_bytes((folder / 'scene_3.png').read_bytes())
    (problem,) = problems(imported, folder)
    assert re.fullmatch(r'scene_2\.png: 89x72 .* 86x68', problem)


def test_random_boxes_are_regenerated(image_folder, tmp_path):
    generate_proposals(
        list_images(image_folder), tmp_path / 'x.npz', workers=1, progress=False, method='random', seed=5
    )
    assert problems(ProposalStore.load(tmp_path / 'x.npz'), image_folder, again=7) == []
