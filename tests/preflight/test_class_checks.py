"""Classes of the datasets, of the json files and of the heads."""

import re

import pytest
from detector_checks import check, check_training, the_line
from small_detector import CLASSES, detector_config, edit_json

from ccop_mm.preflight.findings import Level


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
    report = check_training(cfg)
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
    report = check_training(cfg)
    line = the_line(report, Level.ERROR)
    assert value in line and 'train_dataloader.dataset.metainfo' in line


def test_classes_in_a_file(root):
    (root / 'classes.txt').write_text('\n'.join(CLASSES))
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.metainfo = dict(classes=f'{root}/classes.txt')
    report = check_training(cfg)
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
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=80)] * 3, mask_head=[dict(num_classes=3)] * 3)),
            ['model.roi_head.bbox_head.0'],
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
    report = check_training(cfg)
    assert [finding.where for finding in report.errors] == [f'{path}.num_classes' for path in paths]
    assert all(re.search(r'\b(80|4|2)\b.*\b3\b', finding.what) for finding in report.errors)


def test_equal_heads_of_a_cascade_are_one_line(root):
    cfg = detector_config(root)
    cfg.model = dict(roi_head=dict(bbox_head=[dict(num_classes=80)] * 3))
    line = the_line(check_training(cfg), Level.ERROR)
    assert '3 heads' in line and all(f'model.roi_head.bbox_head.{number}.num_classes=3' in line for number in range(3))


@pytest.mark.parametrize('value', ['3', 3.0])
def test_number_of_classes_that_is_no_whole_number(root, value):
    line = the_line(check(root, **{'model.roi_head.bbox_head.num_classes': value}), Level.ERROR)
    assert f'model.roi_head.bbox_head.num_classes: is {value!r}' in line


@pytest.mark.parametrize(
    ('things', 'stuff', 'weights', 'wrong'),
    [
        (3, 0, 4, None),
        (80, 0, 81, 'model.panoptic_head.num_things_classes'),
        (None, 0, 4, 'model.panoptic_head.num_things_classes'),  # 80 by default
        (3, 0, 81, 'model.panoptic_head.loss_cls.class_weight'),
        (3, 5, 9, None),
    ],
)
def test_heads_of_maskformer(root, things, stuff, weights, wrong):
    head = dict(type='MaskFormerHead', num_stuff_classes=stuff)
    head['loss_cls'] = dict(type='CrossEntropyLoss', class_weight=[1.0] * weights)
    if things is not None:
        head['num_things_classes'] = things
    cfg = detector_config(root)
    cfg.model = dict(type='MaskFormer', panoptic_head=head)
    assert [finding.where for finding in check_training(cfg).findings] == ([] if wrong is None else [wrong])


@pytest.mark.parametrize(
    ('loss', 'is_valid'),
    [
        (dict(type='CrossEntropyLoss', class_weight=[1, 1, 1, 0.1]), True),
        (dict(type='CrossEntropyLoss', class_weight=[1, 1, 1]), False),
        (dict(type='CrossEntropyLoss', class_weight=[1, 1, 1], use_sigmoid=True), True),
        (dict(type='CrossEntropyLoss', class_weight=1.0), True),
    ],
)
def test_weights_of_the_classes(root, loss, is_valid):
    report = check(root, **{'model.roi_head.bbox_head.loss_cls': loss})
    assert [finding.where for finding in report.findings] == (
        [] if is_valid else ['model.roi_head.bbox_head.loss_cls.class_weight']
    )


def test_detector_with_text_queries_is_tested_with_other_classes(root):
    cfg = detector_config(root)
    cfg.val_dataloader.dataset.update(metainfo=dict(classes=('horse', 'cat')), return_classes=True)
    report = check_training(cfg)
    assert not report.errors
