import json
import math
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from PIL import Image

import ccop_mm.detection  # noqa: F401  registers its classes
from ccop_mm.preflight.detector_data import check_training_data
from ccop_mm.preflight.findings import Level, Report
from ccop_mm.preflight.keypoint_checks import mirror_name, unpaired_names

FAULTS = Path(__file__).resolve().parents[1] / 'data/faults'
NAMES = ('nose', 'left_eye', 'right_eye')


@pytest.fixture
def config(tmp_path):
    """Config of a keypoint detector on one image."""
    content = json.loads((FAULTS / 'e15_noarea.json').read_text())
    content['annotations'][0]['area'] = 1800
    content['categories'][0]['keypoints'] = list(NAMES)
    (tmp_path / 'person.json').write_text(json.dumps(content))
    Image.new('RGB', (100, 100)).save(tmp_path / 'a.jpg')
    metainfo = dict(
        classes=('person',),
        keypoint_names=NAMES,
        flip_pairs=(('left_eye', 'right_eye'),),
        skeleton=(),
        sigmas=0.1,
        keypoint_offset=0.5,
    )
    dataset = dict(
        type='CocoKeypointDataset',
        data_root=f'{tmp_path}/',
        ann_file='person.json',
        data_prefix=dict(img=''),
        metainfo=metainfo,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)],
    )
    model = dict(roi_head=dict(bbox_head=dict(num_classes=1), keypoint_head=dict(num_keypoints=3)))
    return Config(dict(default_scope='mmdet', model=model, train_dataloader=dict(batch_size=1, dataset=dataset)))


def check(config):
    report = Report()
    check_training_data(config, report)
    return report


def set_keypoint(value):
    return lambda content: content['annotations'][0]['keypoints'].__setitem__(0, value)


def the_line(report, level):
    assert [finding.level for finding in report.findings] == [level], '\n'.join(map(str, report.findings))
    return str(report.findings[0])


def test_valid_keypoints_have_no_findings(config):
    report = check(config)
    assert report.findings == [] and report.seen == ['1 image', '1 class', '1 box']


def test_names_without_a_flip_pair(config):
    metainfo = config.train_dataloader.dataset.metainfo
    metainfo.flip_pairs = []
    line = the_line(check(config), Level.ERROR)
    assert "('left_eye', 'right_eye')" in line and 'train_dataloader.dataset.metainfo.flip_pairs' in line
    del config.train_dataloader.dataset.pipeline[1]  # nothing is mirrored
    assert check(config).findings == []


def test_invalid_metainfo(config):
    config.train_dataloader.dataset.metainfo.flip_pairs = [('left_eye', 'right_ear')]
    assert 'right_ear' in the_line(check(config), Level.ERROR)


@pytest.mark.parametrize(
    ('change', 'level', 'pattern'),
    [
        (lambda content: content['annotations'][0]['keypoints'].pop(), Level.ERROR, '1 of 1.*3.* 1'),
        (lambda content: content['annotations'][0].pop('keypoints'), Level.ERROR, 'none of the 1'),
        (lambda content: content['categories'][0]['keypoints'].reverse(), Level.ERROR, 'right_eye, left_eye, nose'),
        (
            lambda content: content['annotations'][0]['keypoints'].__setitem__(0, '5'),
            Level.ERROR,
            '1 of 1.*numbers.* 1',
        ),
        (
            lambda content: content['annotations'][0]['keypoints'].__setitem__(1, math.nan),
            Level.ERROR,
            '1 of 1.*NaN.* 1',
        ),
        (
            lambda content: content['annotations'][0].update(keypoints=[0.5, 0.2, 2, 0.1, 0.9, 1, 0, 0, 0]),
            Level.ERROR,
            '1 of 1.*relative',
        ),
        (lambda content: content['annotations'][0].update(area=0), Level.ERROR, '1 of 1.*"area" of 0'),
        (lambda content: content['annotations'][0].pop('area'), Level.WARNING, '1 of 1.*no "area"'),
    ],
)
def test_faulty_keypoints(config, tmp_path, change, level, pattern):
    path = tmp_path / 'person.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert re.search(pattern, the_line(check(config), level))


def test_number_of_keypoints_of_the_head(config):
    config.model.roi_head.keypoint_head = ConfigDict(num_keypoints=17)
    line = the_line(check(config), Level.ERROR)
    assert 'model.roi_head.keypoint_head.num_keypoints' in line and re.search(r'\b17\b.*\b3\b', line)


def test_images_without_enough_keypoints_are_not_counted(config):
    config.train_dataloader.dataset.filter_cfg = dict(min_keypoints=4)
    assert check(config).seen[0] == '0 images'


@pytest.mark.parametrize(
    ('name', 'mirrored'),
    [
        ('left_eye', 'right_eye'),
        ('eye_right', 'eye_left'),
        ('LeftEye', 'RightEye'),
        ('leftEye', 'rightEye'),
        ('LEFT_EYE', 'RIGHT_EYE'),
        ('eye.L', 'eye.R'),
        ('r_front_paw', 'l_front_paw'),
        ('tail', 'tail'),
        ('upright', 'upright'),
    ],
)
def test_mirror_name(name, mirrored):
    assert mirror_name(name) == mirrored and mirror_name(mirrored) == name


def test_unpaired_names_lists_each_pair_once():
    names = ['nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_paw']
    assert unpaired_names(names, [('right_eye', 'left_eye')]) == [('left_ear', 'right_ear')]
    assert unpaired_names(names, [('left_eye', 'right_ear'), ('left_ear', 'right_eye')]) == [
        ('left_eye', 'right_eye'),
        ('left_ear', 'right_ear'),
    ]
