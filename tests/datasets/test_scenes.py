import hashlib
import itertools
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ccop_mm.datasets import scene_backgrounds
from ccop_mm.datasets import scenes as scenes_module
from ccop_mm.datasets.scene_objects import KINDS
from ccop_mm.datasets.scenes import write_scenes
from ccop_mm.errors import InputError

SIZE = (96, 136)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    return folder, write_scenes(folder, num_train=16, num_val=5, size=SIZE, seed=3)


def load(scenes):
    folder, paths = scenes
    return folder, {split: json.loads(path.read_text()) for split, path in paths.items()}


def digests(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes(scenes, tmp_path):
    folder, _ = scenes
    write_scenes(tmp_path / 'again', 16, 5, SIZE, seed=3)
    assert digests(tmp_path / 'again') == digests(folder)
    write_scenes(tmp_path / 'fewer', 3, 2, SIZE, seed=3)
    photos = {name: digest for name, digest in digests(tmp_path / 'fewer').items() if name.endswith('.jpg')}
    assert len(photos) == 5
    assert photos.items() <= digests(folder).items()
    write_scenes(tmp_path / 'other', 1, 1, SIZE, seed=4)
    assert set(digests(tmp_path / 'other').values()).isdisjoint(digests(folder).values())


def test_layout(scenes):
    folder, datasets = load(scenes)
    assert {split: len(data['images']) for split, data in datasets.items()} == {'train': 16, 'val': 5}
    images = [image for data in datasets.values() for image in data['images']]
    assert sorted(path.name for path in (folder / 'images').iterdir()) == sorted(i['file_name'] for i in images)
    assert len({image['id'] for image in images}) == 21
    for image in images:
        assert cv2.imread(str(folder / 'images' / image['file_name'])).shape == (*SIZE, 3)
        assert (image['height'], image['width']) == SIZE
    assert len(set(digests(folder / 'images').values())) == 21
    for data in datasets.values():
        assert {c['id']: c['name'] for c in data['categories']} == dict(enumerate(KINDS, 1))
        ids = [annotation['id'] for annotation in data['annotations']]
        assert len(set(ids)) == len(ids)
        counts = np.unique([a['image_id'] for a in data['annotations']], return_counts=True)[1]
        assert len(counts) == len(data['images'])
        assert set(counts) <= {2, 3, 4, 5, 6}
    assert {annotation['category_id'] for annotation in datasets['train']['annotations']} == {1, 2, 3, 4, 5, 6}


def test_boxes_and_areas_are_those_of_the_masks(scenes):
    coco = COCO(str(scenes[1]['train']))
    for image_id in coco.getImgIds():
        covered = np.zeros(SIZE, int)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation)
            y, x = mask.nonzero()
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert annotation['bbox'] == box
            assert annotation['area'] == mask.sum() >= 100
            covered += mask
        assert covered.max() == 1  # visible pixels belong to one object


def test_selective_search_finds_the_annotated_objects(scenes):
    """The boxes belong to what is seen in the photos: a peer that knows only the pixels finds the same."""
    if not hasattr(cv2, 'ximgproc'):
        pytest.skip('needs cv2.ximgproc (opencv-contrib-python)')
    folder, datasets = load(scenes)
    best = []
    for image in datasets['train']['images']:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.imread(str(folder / 'images' / image['file_name'])))
        search.switchToSelectiveSearchFast()
        found = search.process().tolist()
        boxes = [a['bbox'] for a in datasets['train']['annotations'] if a['image_id'] == image['id']]
        best += rle.iou(found, boxes, [0] * len(boxes)).max(axis=0).tolist()
    assert np.mean(np.array(best) >= 0.5) > 0.95
    assert np.mean(best) > 0.85


def test_masks_are_where_the_objects_are_painted(monkeypatch):
    greys = itertools.count(30, 30)

    def paint(background, grain, x, y, depth, *others):
        return np.where(depth[..., None] > 0, next(greys), background)

    monkeypatch.setattr(scenes_module, 'paint_object', paint)
    for seed in range(5):
        greys = itertools.count(30, 30)
        photo, _, masks = scenes_module.draw_scene(SIZE, np.random.default_rng(seed))
        for grey, mask in zip(itertools.count(30, 30), masks, strict=False):
            # All but the pixels on the outline, which are mixed.
            assert np.mean(abs(photo[mask].astype(int) - grey) < 15) > 0.9


def test_occlusion_is_mild(monkeypatch):
    """Each object keeps most of the pixels that it had before others were put over it."""
    painted = []

    def paint(background, grain, x, y, depth, *others):
        painted.append((depth > 0).sum() / scenes_module.SUPERSAMPLING**2)
        return paint_object(background, grain, x, y, depth, *others)

    paint_object = scenes_module.paint_object
    monkeypatch.setattr(scenes_module, 'paint_object', paint)
    shares = []
    for seed in range(20):
        painted.clear()
        _, kinds, masks = scenes_module.draw_scene(SIZE, np.random.default_rng(seed))
        assert len(kinds) == len(masks) == len(painted)
        shares += (masks.sum(axis=(1, 2)) / painted).tolist()
    # A little off the bound itself, for thin parts are lost when the scene is averaged down.
    assert scenes_module.MIN_VISIBLE - 0.05 < min(shares) < 0.85
    assert max(shares) < 1.05


def test_without_scikit_image_noise_takes_the_photos_place(monkeypatch, tmp_path):
    assert scene_backgrounds.installed_photos() is None or scene_backgrounds.installed_photos().is_dir()
    monkeypatch.setattr(scene_backgrounds.importlib.util, 'find_spec', lambda name: None)
    paths = write_scenes(tmp_path, 2, 1, SIZE, seed=3)
    photo = cv2.imread(str(tmp_path / 'images' / 'train_00000.jpg'))
    assert photo.shape == (*SIZE, 3)
    assert len(json.loads(paths['train'].read_text())['annotations']) >= 4
    surfaces = scene_backgrounds.surfaces(None)
    assert len(surfaces) == len(scene_backgrounds.SURFACES)
    assert min(surface.std(axis=(0, 1)).min() for surface in surfaces) > 5  # none is plain


@pytest.mark.parametrize('arguments', [{'num_train': 0}, {'num_val': -1}, {'size': (63, 200)}])
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(InputError, match='at least'):
        write_scenes(tmp_path / 'out', **arguments)
    assert not (tmp_path / 'out').exists()
