"""Masks of a COCO json: each fault is made, and the line is checked."""

import re

import numpy as np
import pytest
from detector_checks import annotation, check_training, every, the_line
from pycocotools import mask as coco_mask
from small_detector import HEIGHT, WIDTH, detector_config, edit_json

from ccop_mm.preflight import coco_table
from ccop_mm.preflight.findings import Level


def polygon(row):
    x, y, width, height = row['bbox']
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def bitmap(row):
    x, y, width, height = row['bbox']
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order='F')
    mask[y : y + height, x : x + width] = 1
    return mask


def compressed(row):
    encoded = coco_mask.encode(bitmap(row))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def uncompressed(row):
    values = bitmap(row).flatten(order='F')
    changes = np.flatnonzero(np.diff(values)) + 1
    counts = np.diff(np.concatenate([[0], changes, [len(values)]])).tolist()
    return dict(size=[HEIGHT, WIDTH], counts=counts if values[0] == 0 else [0, *counts])


@pytest.fixture
def find(root):
    """``find(*changes)`` checks a detector with masks after changes of its training json."""
    cfg = detector_config(root)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    edit_json(root / 'train.json', every(lambda row: row.update(segmentation=[polygon(row)])))

    def find(*changes):
        for change in changes:
            edit_json(root / 'train.json', change)
        return check_training(cfg)

    return find


@pytest.mark.parametrize('encode', [compressed, uncompressed], ids=lambda encode: encode.__name__)
def test_valid_masks_have_no_findings(find, encode):
    assert not find().findings
    assert not find(every(lambda row: row.update(segmentation=encode(row)))).findings


def test_part_of_an_object_is_one_polygon_of_several(find):
    report = find(every(lambda row: row['segmentation'].append([1, 2])))
    assert not report.findings, 'mmdet ignores the short one'


@pytest.mark.parametrize(
    'value',
    [
        '1 2 3 4 5 6',
        [1, 2, 3, 4, 5, 6],
        [['1', 2, 3, 4, 5, 6]],
        dict(counts='a'),
        dict(size=[1, 2], counts=3),
        [[None] * 6],
    ],
    ids=str,
)
def test_masks_of_another_format(find, value):
    line = the_line(find(annotation(4, segmentation=value)), Level.ERROR)
    assert re.search('train.json: 1 of 72 objects .*neither.* 5;', line)


@pytest.mark.parametrize('value', [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]], ids=str)
@pytest.mark.parametrize(('number', 'level'), [(1, Level.WARNING), (10, Level.ERROR)])
def test_polygons_that_mmdet_ignores(find, value, number, level):
    changes = [annotation(row, segmentation=value) for row in range(number)]
    assert re.search(f'{number} of 72 objects .*three points', the_line(find(*changes), level))


def test_polygons_relative_to_the_image(find):
    def change(content):
        for row in content['annotations']:
            row['segmentation'] = [[value / 64 for value in part] for part in row['segmentation']]

    assert '72 of 72 objects' in the_line(find(change), Level.ERROR)


def test_polygons_of_other_objects(find):
    def change(content):
        content['annotations'][3]['segmentation'] = [polygon(dict(bbox=[0, 0, 3, 3]))]
        content['annotations'][3]['bbox'] = [30, 30, 9, 9]

    assert re.search('1 of 72 objects .*fit their box.* 4;', the_line(find(change), Level.WARNING))


def test_masks_of_another_size_than_the_image(find):
    def change(content):
        for row in content['annotations']:
            row['segmentation'] = {**compressed(row), 'size': [WIDTH, HEIGHT]}

    assert '72 of 72 objects' in the_line(find(change), Level.ERROR)


def test_sample_of_many_masks(find, monkeypatch):
    monkeypatch.setattr(coco_table, 'NUM_SEGMENTATIONS', 10)
    assert '1 of 9 sampled objects' in the_line(find(annotation(8, segmentation='text')), Level.ERROR)
