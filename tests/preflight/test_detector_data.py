"""One test per kind of error in the data of a detector: the fault is made, and the line is checked."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_detector import CLASSES, HEIGHT, WIDTH, detector_config, edit_json, write_dataset

from ccop_mm.preflight.detector_data import check_test_data, check_training_data
from ccop_mm.preflight.findings import Level, Report
from ccop_mm.preflight.json_checks import infer_convention
from ccop_mm.proposals.store import ProposalStore

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / 'tests/data/faults'


@pytest.fixture
def root(tmp_path):
    """Folder of a small dataset without errors."""
    write_dataset(tmp_path / 'data')
    return tmp_path / 'data'


def check(root, **options):
    report = Report()
    check_training_data(detector_config(root, **options), report)
    return report


def check_test(root, **options):
    report = Report()
    check_test_data(detector_config(root, **options), report)
    return report


def the_line(report, level):
    """Returns the only finding, which must have this level."""
    assert [finding.level for finding in report.findings] == [level], '\n'.join(map(str, report.findings))
    return str(report.findings[0])


def test_valid_data_has_no_findings(root):
    report = check(root)
    assert report.findings == []
    assert report.seen == ['24 images', '3 classes', '72 boxes', 'FasterRCNN with ResNet-18-FPN', '18 steps of 4']
    report = check_test(root)
    assert report.findings == []
    assert report.seen == ['12 images', '3 classes', '36 boxes', 'FasterRCNN with ResNet-18-FPN']


def test_wrappers_and_schedules_are_described(root):
    train = detector_config(root).train_dataloader.dataset
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[train, train]))
    options = {
        'train_dataloader.dataset': {**wrapped, '_delete_': True},
        'optim_wrapper.accumulative_counts': 2,
    }
    cfg = detector_config(root)
    cfg.train_dataloader.dataset = wrapped
    cfg.optim_wrapper.accumulative_counts = options['optim_wrapper.accumulative_counts']
    report = Report()
    check_training_data(cfg, report)
    assert report.findings == []
    assert report.seen[0] == '96 images' and report.seen[2] == '288 boxes' and report.seen[-1] == '36 steps of 8'
    loop = dict(type='IterBasedTrainLoop', max_iters=50)
    cfg.train_cfg = loop
    report = Report()
    check_training_data(cfg, report)
    assert report.seen[-1] == '25 steps of 8'


def test_images_that_mmdet_filters_are_not_counted(root):
    edit_json(root / 'train.json', lambda content: content['annotations'].__delitem__(slice(3, 9)))
    assert check(root).seen[0] == '22 images'


# ------------------------------------------------------------------------------------------------ classes and heads


@pytest.mark.parametrize('split', ['train', 'val'])
def test_misspelt_class_is_named_with_the_nearest_one(root, split):
    classes = ('cat', 'dgo', 'horse')
    report = check(root, **{f'{split}_dataloader.dataset.metainfo.classes': classes})
    lines = [str(finding) for finding in report.errors]
    (line,) = [line for line in lines if f'{root}/{split}.json' in line]
    assert re.search(r"'dgo'.*'dog'", line) and f'{split}_dataloader.dataset.metainfo.classes' in line
    # The other split has other classes then.
    assert len(lines) == 2 and "'dgo'" in lines[0] and not report.warnings


def test_class_that_is_missing_in_the_validation_json(root):
    def remove(content):
        del content['categories'][0]
        content['annotations'] = [row for row in content['annotations'] if row['category_id'] != 2]

    edit_json(root / 'val.json', remove)
    assert re.search("'cat'", the_line(check(root), Level.ERROR))


def test_default_classes_of_coco_do_not_fit(root):
    cfg = detector_config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        del loader.dataset['metainfo']
    cfg.model.roi_head.bbox_head.num_classes = 80
    report = Report()
    check_training_data(cfg, report)
    lines = [str(finding) for finding in report.errors]
    assert len(lines) == 2  # the cat, dog and horse of this file are in COCO's classes, the other 77 are not
    assert all('77 of 80' in line for line in lines)


def test_no_class_matches(root):
    classes = ('apple', 'pear', 'plum')
    options = {f'{part}_dataloader.dataset.metainfo.classes': classes for part in ('train', 'val')}
    report = check(root, **options)
    assert len(report.errors) == 2 and not report.warnings
    assert all("('cat', 'dog', 'horse',)" in str(finding) for finding in report.errors)


@pytest.mark.parametrize(
    ('metainfo', 'value'),
    [
        (dict(classes='cat'), "'cat'"),
        (dict(CLASSES=CLASSES), 'CLASSES'),
        (dict(classes=('cat', 'dog', 'dog')), "'dog'"),
        (dict(classes=()), 'empty'),
    ],
)
def test_invalid_classes(root, metainfo, value):
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.metainfo = metainfo
    report = Report()
    check_training_data(cfg, report)
    line = the_line(report, Level.ERROR)
    assert value in line and 'train_dataloader.dataset.metainfo' in line


def test_classes_in_a_file(root):
    (root / 'classes.txt').write_text('\n'.join(CLASSES))
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.metainfo = dict(classes=f'{root}/classes.txt')
    report = Report()
    check_training_data(cfg, report)
    assert report.findings == []


def test_other_order_in_the_json_is_no_problem(root):
    for name in ('train', 'val'):
        edit_json(root / f'{name}.json', lambda content: content['categories'].reverse())
    assert check(root).findings == []


def test_other_order_in_one_split_is(root):
    line = the_line(check(root, **{'val_dataloader.dataset.metainfo.classes': CLASSES[::-1]}), Level.ERROR)
    assert "label 0 is 'horse', there 'cat'" in line


def test_category_that_is_not_in_classes(root):
    options = {f'{part}_dataloader.dataset.metainfo.classes': ('cat', 'dog') for part in ('train', 'val')}
    report = check(root, **options, **{'model.roi_head.bbox_head.num_classes': 2})
    assert [finding.level for finding in report.findings] == [Level.WARNING] * 2
    assert "'horse' (24 objects)" in str(report.findings[0])
    assert report.seen[2] == '48 boxes'


def test_category_name_that_occurs_twice(root):
    edit_json(root / 'train.json', lambda content: content['categories'].append(dict(id=11, name='dog')))
    assert re.search('1 names.*dog', the_line(check(root), Level.ERROR))


@pytest.mark.parametrize(
    ('model', 'paths'),
    [
        (dict(roi_head=dict(bbox_head=dict(num_classes=80))), ['model.roi_head.bbox_head']),
        (
            dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=2))),
            ['model.roi_head.mask_head'],
        ),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=4), dict(num_classes=80)])),
            ['model.roi_head.bbox_head.1', 'model.roi_head.bbox_head.2'],
        ),
        (dict(bbox_head=dict(type='RetinaHead', num_classes=80)), ['model.bbox_head']),
        (dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead'))), ['model.roi_head.bbox_head']),
        (dict(detector=dict(bbox_head=dict(num_classes=80))), ['model.detector.bbox_head']),
        (dict(roi_head=dict(mask_head=dict(type='FCNMaskHead', class_agnostic=True, num_classes=80))), []),
        (dict(rpn_head=dict(type='RPNHead', num_classes=1)), []),
    ],
)
def test_number_of_classes_of_every_head(root, model, paths):
    cfg = detector_config(root)
    cfg.model = model
    report = Report()
    check_training_data(cfg, report)
    assert [finding.where for finding in report.errors] == [f'{path}.num_classes' for path in paths]
    assert all(re.search(r'\b(80|4|2)\b.*\b3\b', finding.what) for finding in report.errors)


# ---------------------------------------------------------------------------------------------------- ids and boxes


def as_corners(row):
    row['bbox'] = [row['bbox'][0], row['bbox'][1], row['bbox'][0] + row['bbox'][2], row['bbox'][1] + row['bbox'][3]]


def as_center(row):
    row['bbox'] = [
        row['bbox'][0] + row['bbox'][2] / 2,
        row['bbox'][1] + row['bbox'][3] / 2,
        row['bbox'][2],
        row['bbox'][3],
    ]


def as_normalized(row):
    row['bbox'] = [value / side for value, side in zip(row['bbox'], [WIDTH, HEIGHT] * 2, strict=True)]


def annotation(number=0, **values):
    return lambda content: content['annotations'][number].update(values)


def every(change):
    return lambda content: [change(row) for row in content['annotations']]


def without(name, table='annotations', count=1):
    return lambda content: [row.pop(name) for row in content[table][:count]]


FAULTY_JSON = {
    'corners': (every(as_corners), Level.ERROR, r'\(x1, y1, x2, y2\)'),
    'center': (every(as_center), Level.ERROR, 'center x'),
    'normalized': (every(as_normalized), Level.ERROR, 'relative'),
    'unknown_category': (annotation(category_id=4), Level.ERROR, r'category_id.* 1$|1 of 72.*category_id'),
    'unknown_image': (annotation(image_id=999), Level.WARNING, '1 of 72.*image_id'),
    'unknown_images': (every(lambda row: row.update(image_id=str(row['image_id']))), Level.ERROR, '72 of 72.*image_id'),
    'duplicate_image': (
        lambda content: content['images'].append(dict(content['images'][0], file_name='train001.jpg')),
        Level.ERROR,
        '1 image ids.*1',
    ),
    'duplicate_annotation': (annotation(4, id=1), Level.ERROR, '1 annotation ids.*1'),
    'nan': (annotation(3, bbox=[1, 2, math.nan, 4]), Level.ERROR, '1 of 72.*NaN.* 4'),
    'infinity': (annotation(3, bbox=[1, 2, math.inf, 4]), Level.ERROR, '1 of 72.*infinity.* 4'),
    'short_box': (annotation(2, bbox=[1, 2, 3]), Level.ERROR, '1 of 72.*bbox.* 3'),
    'text_box': (annotation(2, bbox=[1, 2, 3, None]), Level.ERROR, '1 of 72.*(bbox|NaN).* 3'),
    'missing_box': (without('bbox'), Level.ERROR, '1 of 72.*bbox.* 1'),
    'no_area': (annotation(5, bbox=[10, 10, 0, 5]), Level.WARNING, '1 of 72 boxes have no area.* 6'),
    'negative': (annotation(5, bbox=[10, 10, -4, 5]), Level.WARNING, '1 of 72 boxes have no area.* 6'),
    'all_negative': (
        every(lambda row: row.update(bbox=[10, 10, -4, 5])),
        Level.ERROR,
        '72 of 72 boxes have no area',
    ),
    'outside': (annotation(6, bbox=[80, 10, 9, 9]), Level.WARNING, '1 of 72 boxes are outside.* 7'),
    'exceeding': (annotation(7, bbox=[50, 10, 30, 9]), Level.WARNING, '1 of 72 boxes exceed.* 8'),
    'missing_area': (without('area', count=2), Level.WARNING, r'2 of 72.*"area".* 1, 2\b'),
    'area_0': (annotation(8, area=0), Level.WARNING, '1 of 72.*"area" of 0.* 9'),
    'all_areas_0': (every(lambda row: row.update(area=0)), Level.ERROR, '72 of 72.*"area" of 0'),
    'missing_crowd_flag': (without('iscrowd'), Level.WARNING, '1 of 72.*"iscrowd".* 1'),
    'missing_size': (without('width', 'images'), Level.ERROR, '1 of 24 images.*"width".*train000.jpg'),
    'size_0': (lambda content: content['images'][2].update(height=0), Level.ERROR, '1 of 24 images.*train002.jpg'),
    'no_annotations': (lambda content: content.update(annotations=[]), Level.ERROR, 'cat, dog, horse'),
    'no_images': (lambda content: content.update(images=[]), Level.ERROR, 'images'),
    'images_without_id': (without('id', 'images'), Level.ERROR, '"id"'),
    'annotation_without_category': (without('category_id'), Level.ERROR, '"category_id"'),
    'list_as_id': (annotation(image_id=[1]), Level.ERROR, r'"image_id".*\[1\]'),
}


@pytest.mark.parametrize('kind', FAULTY_JSON)
def test_faulty_json(root, kind):
    change, level, pattern = FAULTY_JSON[kind]
    edit_json(root / 'train.json', change)
    report = check(root)
    (line,) = map(str, report.errors if level is Level.ERROR else report.findings)
    assert line.startswith(level.value) and re.search(pattern, line), line
    assert f'{root}/train.json' in line


def test_test_data_has_the_same_checks(root):
    edit_json(root / 'val.json', every(as_corners))
    assert 'val.json' in the_line(check_test(root), Level.ERROR)


def test_annotation_id_0_is_no_problem(root):
    edit_json(root / 'train.json', annotation(id=0))
    assert check(root).findings == []


def test_annotation_id_0_with_the_parallel_evaluator(root):
    options = {'val_evaluator.use_mp_eval': True}
    assert check(root, **options).findings == []
    edit_json(root / 'val.json', annotation(id=0))
    assert 'val_evaluator.use_mp_eval' in the_line(check(root, **options), Level.ERROR)


def test_missing_masks(root):
    edit_json(root / 'train.json', every(lambda row: row.update(segmentation=[[1, 1, 9, 1, 9, 9]])))
    edit_json(root / 'train.json', annotation(3, segmentation=[]))
    assert check(root).findings == []
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    report = Report()
    check_training_data(cfg, report)
    assert re.search('1 of 72.*"segmentation".* 4', the_line(report, Level.ERROR))
    line = the_line(check(root, **{'val_evaluator.metric': ['bbox', 'segm']}), Level.ERROR)
    assert 'val_evaluator.metric' in line and '36 of 36' in line


@pytest.mark.parametrize(
    ('text', 'value'), [('{', 'not JSON'), ('[1]', 'list'), ('{"images": 5}', '"images"'), (None, 'does not exist')]
)
def test_annotation_file_that_is_no_coco_json(root, text, value):
    if text is None:
        (root / 'train.json').unlink()
    else:
        (root / 'train.json').write_text(text)
    line = the_line(check(root), Level.ERROR)
    assert value in line and f'{root}/train.json' in line


def test_evaluator_reads_another_file(root):
    line = the_line(check(root, **{'val_evaluator.ann_file': f'{root}/train.json'}), Level.ERROR)
    assert 'val_evaluator.ann_file' in line and '12 images' in line
    shutil.copy(root / 'val.json', root / 'copy.json')
    assert check(root, **{'val_evaluator.ann_file': f'{root}/copy.json'}).findings == []


# ----------------------------------------------------------------------------------------------------------- images


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


def test_windows_paths_of_the_example(root):
    shutil.copy(FAULTS / 'windows_abs.json', root / 'train.json')
    classes = [category['name'] for category in json.loads((root / 'train.json').read_text())['categories']]
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.metainfo.classes = classes
    cfg.val_dataloader = cfg.val_evaluator = None
    cfg.model.roi_head.bbox_head.num_classes = len(classes)
    report = Report()
    check_training_data(cfg, report)
    assert 'Windows' in the_line(report, Level.ERROR)


def test_absolute_paths_that_exist(root):
    def change(content):
        for image in content['images']:
            image['file_name'] = f'{root}/images/{image["file_name"]}'

    edit_json(root / 'train.json', change)
    assert check(root).findings == []


def test_missing_image_folder(root):
    line = the_line(check(root, **{'train_dataloader.dataset.data_prefix.img': 'absent/'}), Level.ERROR)
    assert f'{root}/absent' in line


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
    report = Report()
    check_training_data(cfg, report)
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
    edit_json(root / 'train.json', every(lambda row: row.update(bbox=[1, 1, 9, 9])))
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


def test_remote_data_is_not_checked(root):
    cfg = detector_config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = 's3://bucket/'
    report = Report()
    check_training_data(cfg, report)
    assert report.findings == [] and report.seen[0] == '3 classes'


# ------------------------------------------------------------------------------------------------- all configurations

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def test_configs_are_found():
    assert len(CONFIGS) > 40


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_no_false_alarm_without_data(path, tmp_path, monkeypatch):
    """Without their data, the configs of the project have no finding other than the missing files."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    before = cfg.pretty_text
    report = Report()
    check_training_data(cfg, report)
    if cfg.get('test_dataloader') is not None:
        check_test_data(cfg, report)
    assert all('does not exist' in str(finding) for finding in report.findings), report.findings
    assert any('ResNet-' in part for part in report.seen)
    assert cfg.pretty_text == before


# ------------------------------------------------------------------------------------------------------ pre-training


def test_pretraining_is_described(tmp_path):
    boxes = [[0, 0, 20, 20], [5, 5, 30, 40]]
    ProposalStore([(number, f'{number}.png', (70, 90), boxes) for number in range(10)]).save(tmp_path / 'boxes.npz')
    dataset = dict(type='ProposalDataset', data_root=f'{tmp_path}/', proposal_file='boxes.npz')
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r18_fpn_demo.py')
    cfg.train_dataloader.update(dataset=dataset, batch_size=4)
    report = Report()
    check_training_data(cfg, report)
    assert report.findings == []
    assert report.seen == ['10 images', '20 proposals', 'CCOP with ResNet-18-FPN', '60 steps of 4']  # drop_last


# ----------------------------------------------------------------------------------------------- conventions of boxes


@pytest.mark.parametrize('seed', range(20))
def test_convention_is_inferred(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 1000, (60, 2)).astype(float)
    sides = rng.uniform(0.02, 1, (60, 2)) * sizes
    corners = rng.random((60, 2)) * (sizes - sides)
    boxes = np.concatenate([corners, sides], axis=1)
    assert infer_convention(boxes, sizes) is None
    assert 'x2' in infer_convention(np.concatenate([corners, corners + sides], axis=1), sizes)
    assert 'center' in infer_convention(np.concatenate([corners + sides / 2, sides], axis=1), sizes)
    assert 'relative' in infer_convention(boxes / np.tile(sizes, 2), sizes)
    assert 'relative' in infer_convention(np.concatenate([corners, corners + sides], axis=1) / np.tile(sizes, 2), sizes)
    # Boxes that exceed their image slightly are no other convention.
    boxes[:, 2:] += rng.uniform(0, 1.5, (60, 2))
    assert infer_convention(boxes, sizes) is None
    assert infer_convention(np.zeros((0, 4)), np.zeros((0, 2))) is None
