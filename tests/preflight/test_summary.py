"""Number of images, boxes and steps in the last line of a report."""

import pytest
from detector_checks import check, check_training, the_line
from mmdet.models import ResNet
from mmengine.config import Config
from small_detector import detector_config, edit_json

from ccop_mm.preflight.findings import Level
from ccop_mm.preflight.summary import describe_model


def test_wrappers_and_schedules_are_described(root):
    train = detector_config(root).train_dataloader.dataset
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[train, train]))
    cfg = detector_config(root)
    cfg.train_dataloader.dataset = wrapped
    cfg.optim_wrapper.accumulative_counts = 2
    report = check_training(cfg)
    assert report.findings == []
    assert report.seen[0] == '96 images' and report.seen[2] == '288 boxes' and report.seen[-1] == '36 steps of 8'
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=50)
    assert check_training(cfg).seen[-1] == '25 steps of 8'


@pytest.mark.parametrize(
    ('neck', 'text'),
    [
        (dict(type='mmdet.FPN'), 'FasterRCNN with ResNet-18-FPN'),
        ([dict(type='FPN'), dict(type='BFP')], 'FasterRCNN with ResNet-18-FPN+BFP'),
        (None, 'FasterRCNN with ResNet-18'),
    ],
)
def test_model_is_described(neck, text):
    cfg = Config(dict(model=dict(type='mmdet.FasterRCNN', backbone=dict(type=ResNet, depth=18), neck=neck)))
    assert describe_model(cfg) == text
    assert describe_model(Config(dict(model=dict(neck=neck)))) is None


def test_images_that_mmdet_filters_are_not_counted(root):
    edit_json(root / 'train.json', lambda content: content['annotations'].__delitem__(slice(3, 9)))
    assert check(root).seen[0] == '22 images'


@pytest.mark.parametrize(('indices', 'number'), [(5, 5), (-3, 3), ([0, 7, -1], 3), (100, 24)])
def test_indices_limit_the_images(root, indices, number):
    report = check(root, **{'train_dataloader.dataset.indices': indices})
    assert report.seen[0] == f'{number} images' and report.seen[2] == f'{3 * number} boxes'


@pytest.mark.parametrize(
    ('indices', 'value'), [('5', "'5'"), ([1, '2'], "'2'"), (1.5, '1.5'), ([3, 24], 'no position 24'), ([-25], '-25')]
)
def test_invalid_indices(root, indices, value):
    line = the_line(check(root, **{'train_dataloader.dataset.indices': indices}), Level.ERROR)
    assert 'train_dataloader.dataset.indices' in line and value in line


def test_indices_count_the_images_that_are_left(root):
    edit_json(root / 'train.json', lambda content: content['annotations'].__delitem__(slice(3, 9)))
    assert not check(root, **{'train_dataloader.dataset.indices': [21]}).findings
    assert 'no position 22' in the_line(check(root, **{'train_dataloader.dataset.indices': [22]}), Level.ERROR)


@pytest.mark.parametrize('options', [dict(indices=0), dict(filter_cfg=dict(min_size=1000))], ids=str)
def test_no_image_is_left(root, options):
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.update(options)
    line = the_line(check_training(cfg), Level.ERROR)
    (key,) = options
    assert 'train_dataloader.dataset' in line and f'{key}=' in line
