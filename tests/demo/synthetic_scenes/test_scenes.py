import hashlib
import itertools
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from synthetic_scenes import backgrounds as scene_backgrounds
from synthetic_scenes import scenes as scenes_module
from synthetic_scenes.objects import KINDS
from synthetic_scenes.scenes import write_scenes

from ccop_mm.utils.errors import InputError

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


def test_equal_seeds_give_equal_files(scenes, tmp_path):
    folder, _ = scenes
    write_scenes(tmp_path / 'again', 16, 5, SIZE, seed=3)
    assert digests(tmp_path / 'again') == digests(folder)
    write_scenes(tmp_path / 'fewer', 3, 2, SIZE, seed=3)
    images = {name: digest for name, digest in digests(tmp_path / 'fewer').items() if name.endswith('.jpg')}
    assert len(images) == 5
    assert images.items() <= digests(folder).items()
    write_scenes(tmp_path / 'other', 1, 1, SIZE, seed=4)
    assert set(digests(tmp_path / 'other').values()).isdisjoint(digests(folder).values())


def test_coco_layout(scenes):
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


def test_boxes_and_areas_match_the_masks(scenes):
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
    """OpenCV's selective search, which sees the pixels alone, finds boxes that match the annotations."""
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


def test_masks_match_the_painted_objects(monkeypatch):
    gray_levels = itertools.count(30, 30)

    def paint(background, texture, x, y, depth, *others):
        return np.where(depth[..., None] > 0, next(gray_levels), background)

    monkeypatch.setattr(scenes_module, 'paint_object', paint)
    for seed in range(5):
        gray_levels = itertools.count(30, 30)
        image, _, masks = scenes_module.render_scene(SIZE, np.random.default_rng(seed))
        for gray, mask in zip(itertools.count(30, 30), masks, strict=False):
            # Pixels on the outline mix two gray levels.
            assert np.mean(abs(image[mask].astype(int) - gray) < 15) > 0.9


def test_occlusion_is_mild(monkeypatch):
    """Most pixels of each object stay visible after later objects are painted."""
    painted = []

    def paint(background, texture, x, y, depth, *others):
        painted.append((depth > 0).sum() / scenes_module.SUPERSAMPLING**2)
        return paint_object(background, texture, x, y, depth, *others)

    paint_object = scenes_module.paint_object
    monkeypatch.setattr(scenes_module, 'paint_object', paint)
    visible = []
    for seed in range(20):
        painted.clear()
        _, kinds, masks = scenes_module.render_scene(SIZE, np.random.default_rng(seed))
        assert len(kinds) == len(masks) == len(painted)
        visible += (masks.sum(axis=(1, 2)) / painted).tolist()
    # Slightly below the limit, because downsampling removes thin parts.
    assert scenes_module.MIN_VISIBLE - 0.05 < min(visible) < 0.85
    assert max(visible) < 1.05


def test_noise_replaces_the_images_without_scikit_image(monkeypatch, tmp_path):
    assert scene_backgrounds.installed_images() is None or scene_backgrounds.installed_images().is_dir()
    monkeypatch.setattr(scene_backgrounds.importlib.util, 'find_spec', lambda name: None)
    paths = write_scenes(tmp_path, 2, 1, SIZE, seed=3)
    image = cv2.imread(str(tmp_path / 'images' / 'train_00000.jpg'))
    assert image.shape == (*SIZE, 3)
    assert len(json.loads(paths['train'].read_text())['annotations']) >= 4
    surfaces = scene_backgrounds.surfaces(None)
    assert len(surfaces) == len(scene_backgrounds.SURFACES)
    assert min(surface.std(axis=(0, 1)).min() for surface in surfaces) > 5  # no surface is uniform


@pytest.mark.parametrize(
    'arguments, value', [({'num_train': 0}, '0'), ({'num_val': -1}, '-1'), ({'size': (63, 200)}, '63')]
)
def test_bad_arguments_raise_input_error(tmp_path, arguments, value):
    with pytest.raises(InputError, match=rf'(^|\W){value}\b'):
        write_scenes(tmp_path / 'out', **arguments)
    assert not (tmp_path / 'out').exists()
