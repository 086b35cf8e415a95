"""Images that are missing, damaged, turned, or of another size than in the json."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from detector_checks import check, check_test, check_training, every, the_line
from PIL import Image
from small_detector import HEIGHT, WIDTH, detector_config, edit_json

from ccop_mm.preflight.findings import Level

FAULTS = Path(__file__).resolve().parents[1] / 'data/faults'


@pytest.mark.parametrize(
    ('split', 'number', 'level'),
    [('train', 1, Level.WARNING), ('train', 20, Level.ERROR), ('val', 1, Level.WARNING), ('val', 10, Level.ERROR)],
)
def test_missing_images(root, split, number, level):
    for index in range(number):
        (root / 'images' / f'{split}{index:03d}.jpg').unlink()
    line = the_line(check(root) if split == 'train' else check_test(root), level)
    total = 24 if split == 'train' else 12
    assert re.search(rf'{root}/images.*\b{number} of the {total} .*{split}000\.jpg', line)


@pytest.mark.parametrize(
    ('rename', 'pattern'),
    [
        (lambda name: f'D:/data/sub/{name}', "Windows.*'train000.jpg' exists"),
        (lambda name: f'D:\\data\\{name}', "Windows.*'train000.jpg' exists"),
        (lambda name: f'sub\\{name}', "Windows.*'train000.jpg' exists"),
        (lambda name: f'/home/somebody/{name}', "absolute.*'train000.jpg' exists"),
        (lambda name: f'train2017/{name}', 'images/ itself'),
        (lambda name: name.replace('jpg', 'JPG'), 'case.*train000.jpg'),
        (lambda name: name.replace('jpg', 'png'), 'suffix.*train000.jpg'),
        (lambda name: f'x{name}', 'data_prefix'),
    ],
)
def test_what_the_names_of_missing_images_look_like(root, rename, pattern):
    def change(content):
        for image in content['images']:
            image['file_name'] = rename(image['file_name'])

    edit_json(root / 'train.json', change)
    line = the_line(check(root), Level.ERROR)
    assert '24 of the 24' in line and re.search(pattern, line), line


def test_images_in_a_subfolder(root):
    (root / 'pictures').mkdir()
    (root / 'images').rename(root / 'pictures/images')
    options = {f'{part}_dataloader.dataset.data_prefix.img': 'pictures/' for part in ('train', 'val')}
    report = check(root, **options)
    assert len(report.errors) == 2 and all("'images'" in str(finding) for finding in report.errors)


@pytest.mark.parametrize(
    ('folders', 'pattern'),
    [
        (['deep/er'], "subfolder 'deep/er'"),
        (['part.1'], "'part.1'"),
        (['a', 'b'], "subfolders 'a', 'b'.*a/train000.jpg"),
    ],
)
def test_images_in_other_subfolders(root, folders, pattern):
    paths = sorted((root / 'images').glob('train*'))
    for number, path in enumerate(paths):
        folder = root / 'images' / folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    assert re.search(f'24 of the 24.*{pattern}', the_line(check(root), Level.ERROR))


def test_windows_paths_of_the_example(root):
    shutil.copy(FAULTS / 'windows_abs.json', root / 'train.json')
    classes = [category['name'] for category in json.loads((root / 'train.json').read_text())['categories']]
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.metainfo.classes = classes
    cfg.val_dataloader = cfg.val_evaluator = None
    cfg.model.roi_head.bbox_head.num_classes = len(classes)
    report = check_training(cfg)
    assert 'Windows' in the_line(report, Level.ERROR)


def test_absolute_paths_that_exist(root):
    def change(content):
        for image in content['images']:
            image['file_name'] = f'{root}/images/{image["file_name"]}'

    edit_json(root / 'train.json', change)
    assert check(root).findings == []


def turn(path, orientation):
    """Sets the EXIF orientation of a JPEG; the pixels stay as they are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_images_that_are_turned_when_loaded(root, orientation):
    for number in (3, 8):
        turn(root / 'images' / f'train{number:03d}.jpg', orientation)
    line = the_line(check(root), Level.ERROR)
    assert re.search(r'\b2 of 24 .*EXIF.*train003\.jpg, train008\.jpg', line)
    # Loaded as stored, or annotated as turned, they are right.
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    report = check_training(cfg)
    assert report.findings == []
    edit_json(
        root / 'train.json',
        lambda content: [content['images'][number].update(width=HEIGHT, height=WIDTH) for number in (3, 8)],
    )
    edit_json(
        root / 'train.json',
        lambda content: [row.update(bbox=[1, 1, 9, 9]) for row in content['annotations'] if row['image_id'] in (4, 9)],
    )
    assert check(root).findings == []


def test_turned_image_of_the_example(root):
    shutil.copy(FAULTS / 'exif6.jpg', root / 'images/train000.jpg')
    edit_json(root / 'train.json', lambda content: content['images'][0].update(width=208, height=160))
    assert re.search(r'\b1 of 24 .*EXIF.*train000\.jpg', the_line(check(root), Level.ERROR))


def test_orientation_that_the_size_does_not_show(root):
    turn(root / 'images/train003.jpg', 3)
    assert re.search(r'\b1 of 24 .*EXIF.*train003\.jpg', the_line(check(root), Level.WARNING))


def test_width_and_height_are_exchanged(root):
    def exchange(content):
        for image in content['images']:
            image.update(width=image['height'], height=image['width'])

    edit_json(root / 'train.json', exchange)
    edit_json(root / 'train.json', every(lambda row: row.update(bbox=[1, 1, 30, 9])))
    assert re.search(r'\b24 of 24 .*exchanged', the_line(check(root), Level.ERROR))


def test_images_of_another_size(root):
    for path in (root / 'images').glob('train*.jpg'):
        with Image.open(path) as image:
            image.resize((WIDTH // 2, HEIGHT // 2)).save(path)
    assert re.search(r'\b24 of 24 .*another size.*train000', the_line(check(root), Level.ERROR))


def test_image_that_cannot_be_read(root):
    path = root / 'images/train005.jpg'
    os.truncate(path, 3)
    assert re.search(r'\b1 of 24 .*train005\.jpg', the_line(check(root), Level.WARNING))
