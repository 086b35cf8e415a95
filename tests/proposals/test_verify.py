"""Whether a file belongs to a set of photos: each kind of fault is found, and named."""

import json

import cv2
import numpy as np
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import ProposalStore, list_photos
from ccop_mm.proposals.run import run
from ccop_mm.proposals.verify import verify


@pytest.fixture
def made(photo_folder, tmp_path):
    """The folder and its store, made by the search; one photo is bad."""
    (photo_folder / 'bad.jpg').write_text('no photo')
    run(list_photos(photo_folder), tmp_path / 'x.npz', workers=1, progress=False, max_boxes=9)
    return photo_folder, ProposalStore.load(tmp_path / 'x.npz')


def changed(store, name, boxes=None, **metadata):
    """The store with other boxes for one photo, or other metadata."""
    entries = [(*entry[:3], boxes if entry[1] == name else entry[3]) for entry in store.entries()]
    digests = {image_id: store.digest(image_id) for image_id in store.image_ids.tolist()}
    return ProposalStore(entries, store.skipped, {**store.metadata, **metadata}, digests)


def faults(store, folder, **options):
    return verify(store, list_photos(folder), **options).faults


def test_what_belongs_together_has_no_fault(made):
    folder, store = made
    report = verify(store, list_photos(folder), again=3, workers=2)
    assert report.faults == []
    assert (report.num_photos, report.num_skipped, report.num_same_bytes, report.num_searched_again) == (8, 1, 7, 3)
    assert report.num_boxes == store.num_boxes.sum()
    text = str(report)
    for line in ('  lack boxes       1 (0 without any, 1 skipped)', 'faults             0', 'mode fast', 'opencv '):
        assert line in text


def test_photos_that_came_went_and_changed(made, scene):
    folder, store = made
    (folder / 'scene_0.png').rename(folder / 'renamed.png')
    cv2.imwrite(str(folder / 'scene_1.png'), scene(70, *store.size(store.id_of('scene_1.png'))))
    cv2.imwrite(str(folder / 'scene_2.png'), scene(2, 30, 40))
    (folder / 'scene_3.png').write_text('no photo any more')
    (folder / 'bad.jpg').unlink()
    found = '\n'.join(faults(store, folder))
    for line in (
        'renamed.png (id ',
        'scene_0.png (id ',
        'bad.jpg (skipped) is in the file alone',
        'scene_1.png: the file has changed since its boxes were made',
        'scene_2.png: 40x30 pixels, its boxes are of 86x68',
        'scene_3.png: not a whole image',
    ):
        assert line in found
    assert found.count('\n') == 5


def test_the_ids_of_another_set(made, tmp_path):
    folder, store = made
    images = [{'id': image_id, 'file_name': 'scene_1.png'} for image_id in store.image_ids.tolist()[:1]]
    (tmp_path / 'x.json').write_text(json.dumps({'images': images}))
    found = verify(store, list_photos(tmp_path / 'x.json', folder)).faults
    assert any(f'id {images[0]["id"]} is ' in line and 'scene_1.png in the source' in line for line in found)


@pytest.mark.parametrize(
    ('boxes', 'fault'),
    [
        ([[0, 0, 200, 30]], '1 of 1 boxes are outside the photo'),
        ([[-1, 0, 20, 30]], '1 of 1 boxes are outside the photo'),
        ([[0, 0, 20, np.nan]], '1 of 1 boxes are outside the photo'),
        ([[0, 0, 20, 20], [5, 5, 5, 9]], '1 of 2 boxes are without area'),
        ([[0, 0, 11, 13]], '1 of 1 boxes are smaller than 144 pixels'),
        ([[0, 0, 60, 20]], '1 of 1 boxes are longer than 1 to 3'),
        ([[i, 0, 20 + i, 20] for i in range(11)], '2 of 11 boxes are more than 9'),
    ],
)
def test_boxes_that_cannot_be(made, boxes, fault):
    folder, store = made
    assert f'scene_4.png: {fault}' in faults(changed(store, 'scene_4.png', boxes), folder)


def test_boxes_of_another_photo_are_found_by_searching_again(made):
    folder, store = made
    other = changed(store, 'scene_4.png', store.boxes(store.id_of('scene_3.png')))
    assert faults(other, folder) == []  # nothing tells but the search
    (fault,) = faults(other, folder, again=100)
    assert fault == f'scene_4.png: other boxes are found now, with OpenCV {cv2.__version__}'


def test_imported_boxes_have_no_rules_and_cannot_be_searched(made):
    folder, store = made
    imported = ProposalStore(store.entries(), store.skipped, {'method': 'imported'})
    report = verify(changed(imported, 'scene_4.png', [[0, 0, 3, 3]]), list_photos(folder))
    assert (report.faults, report.num_same_bytes) == ([], 0)  # the sizes were compared instead
    with pytest.raises(InputError, match='can be found again'):
        verify(imported, list_photos(folder), again=1)
    (folder / 'scene_2.png').write_bytes((folder / 'scene_3.png').read_bytes())
    assert faults(imported, folder) == ['scene_2.png: 89x72 pixels, its boxes are of 86x68']


def test_random_boxes_are_drawn_again(photo_folder, tmp_path):
    run(list_photos(photo_folder), tmp_path / 'x.npz', workers=1, progress=False, method='random', seed=5)
    assert faults(ProposalStore.load(tmp_path / 'x.npz'), photo_folder, again=7) == []
