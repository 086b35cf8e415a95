"""Numbers of pycocotools and mmdet that depend on the patches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccop_mm.compat.pycocotools import object_area

FAULTS = Path(__file__).resolve().parents[1] / 'data/faults'
CLASSES = ('ball', 'starfish', 'leaf', 'doughnut', 'crate', 'fish')


@pytest.fixture
def files(tmp_path):
    """The same annotations with the categories in the order of their ids, in reverse and in another order."""
    content = json.loads((FAULTS / 'val_reversed.json').read_text())
    paths = []
    for name, order in (('sorted', slice(None, None, -1)), ('reversed', slice(None)), ('shuffled', [3, 0, 5, 1, 4, 2])):
        categories = np.array(content['categories'])[order].tolist()
        paths.append(tmp_path / f'{name}.json')
        paths[-1].write_text(json.dumps(dict(content, categories=categories)))
    return paths


def noisy_detections(path, classes, noise=6.0):
    """Returns noisy ground-truth boxes as predictions of a detector whose label i is ``classes[i]``."""
    content = json.loads(path.read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    rng = np.random.default_rng(0)
    samples = []
    for image in content['images']:
        rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
        boxes = np.array([row['bbox'] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        samples.append(
            dict(
                img_id=image['id'],
                ori_shape=(image['height'], image['width']),
                pred_instances=dict(
                    bboxes=torch.tensor(boxes + rng.normal(0, noise, boxes.shape)),
                    scores=torch.tensor(rng.random(len(rows))),
                    labels=torch.tensor([classes.index(names[row['category_id']]) for row in rows]),
                ),
            )
        )
    return samples


def evaluate(path, samples, classes, kind='bbox'):
    """Evaluates as mmdet does, without rounding; returns the 12 statistics."""
    truth = COCO(str(path))
    ids = truth.getCatIds(catNms=list(classes))
    detections = []
    for sample in samples:
        predictions = sample['pred_instances']
        rows = zip(predictions['bboxes'].tolist(), predictions['scores'], predictions['labels'], strict=True)
        for (x1, y1, x2, y2), score, label in rows:
            box = [x1, y1, x2 - x1, y2 - y1]
            detections.append(
                dict(image_id=sample['img_id'], category_id=ids[label], bbox=box, score=float(score), area=1)
            )
    evaluation = COCOeval(truth, truth.loadRes(detections), kind)
    evaluation.params.catIds = ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_ap_does_not_depend_on_the_order_of_categories(files):
    samples = noisy_detections(files[0], CLASSES)
    expected = evaluate(files[0], samples, CLASSES)
    assert 0.1 < expected[0] < 0.9
    for path in files[1:]:
        np.testing.assert_allclose(evaluate(path, samples, CLASSES), expected, rtol=0, atol=1e-9)
    other = CLASSES[::-1]
    for path in files:
        np.testing.assert_allclose(evaluate(path, noisy_detections(path, other), other), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('classes', [CLASSES, CLASSES[::-1], ('leaf', 'ball', 'fish', 'crate', 'starfish', 'doughnut')])
def test_mmdet_numbers_classes_by_name(files, classes):
    expected = None
    for path in files:
        content = json.loads(path.read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        dataset = CocoDataset(
            ann_file=str(path), data_prefix=dict(img=''), metainfo=dict(classes=classes), pipeline=[], test_mode=True
        )
        found = [
            row['bbox_label'] for index in range(len(dataset)) for row in dataset.get_data_info(index)['instances']
        ]
        by_image = sorted(content['annotations'], key=lambda row: row['image_id'])
        assert found == [classes.index(names[row['category_id']]) for row in by_image]
        metric = CocoMetric(ann_file=str(path), classwise=True)
        metric.dataset_meta = dict(classes=classes)
        metric.process({}, noisy_detections(path, classes))
        metrics = metric.evaluate(len(content['images']))
        assert expected is None or metrics == expected
        expected = metrics
    precisions = {metrics[f'coco/{name}_precision'] for name in classes}
    assert len(precisions) > 3, 'the AP of the classes must differ for the test to mean anything'


def test_classwise_ap_belongs_to_the_class(files):
    # Only balls are detected, exactly.
    samples = noisy_detections(files[1], CLASSES, noise=0)
    for sample in samples:
        instances = sample['pred_instances']
        balls = instances['labels'] == CLASSES.index('ball')
        sample['pred_instances'] = {name: values[balls] for name, values in instances.items()}
    metric = CocoMetric(ann_file=str(files[1]), classwise=True)
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    metrics = metric.evaluate(len(samples))
    assert {name: metrics[f'coco/{name}_precision'] for name in CLASSES} == {**dict.fromkeys(CLASSES, 0), 'ball': 1}


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('annotation_id', [0, 7])
def test_perfect_detection_of_annotation_zero_has_ap_1(tmp_path, kind, annotation_id):
    content = json.loads((FAULTS / 'id0.json').read_text())
    content['annotations'][0]['id'] = annotation_id
    path = tmp_path / 'id0.json'
    path.write_text(json.dumps(content))
    truth = COCO(str(path))
    detection = dict(content['annotations'][0], score=0.9)
    if kind == 'segm':
        detection['segmentation'] = truth.annToRLE(truth.anns[annotation_id])
    evaluation = COCOeval(truth, truth.loadRes([detection]), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert list(truth.anns) == [annotation_id], 'the annotations themselves keep their ids'


def test_annotations_zero_get_different_ids():
    row = dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0)
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=1)],
        categories=[dict(id=1, name='a')],
        annotations=[dict(row, id=number) for number in (0, 0, 3)],
    )
    truth.createIndex()
    evaluation = COCOeval(truth, truth, 'bbox')
    evaluation._prepare()
    for groups in (evaluation._gts, evaluation._dts):
        assert sorted(annotation['id'] for group in groups.values() for annotation in group) == [3, 4, 5]


def test_annotation_zero_among_others(files, tmp_path):
    """Renumbering ids from 0 must not change any number."""
    content = json.loads(files[0].read_text())
    for number, annotation in enumerate(content['annotations']):
        annotation['id'] = number
    renumbered = tmp_path / 'renumbered.json'
    renumbered.write_text(json.dumps(content))
    samples = noisy_detections(files[0], CLASSES, noise=2.0)
    expected = evaluate(files[0], samples, CLASSES)
    np.testing.assert_allclose(evaluate(renumbered, samples, CLASSES), expected, rtol=0, atol=1e-9)


def test_missing_area_and_crowd_flag_are_supplied(files, tmp_path):
    content = json.loads(files[0].read_text())
    areas = [annotation.pop('area') for annotation in content['annotations']]
    for annotation in content['annotations']:
        del annotation['iscrowd']
    path = tmp_path / 'bare.json'
    path.write_text(json.dumps(content))
    samples = noisy_detections(files[0], CLASSES)
    expected = evaluate(files[0], samples, CLASSES)
    np.testing.assert_allclose(evaluate(path, samples, CLASSES), expected, rtol=0, atol=1e-9)
    assert [annotation['area'] for annotation in COCO(str(path)).dataset['annotations']] == areas
    assert len(CocoDataset(ann_file=str(path), data_prefix=dict(img=''), metainfo=dict(classes=CLASSES))) == 12


@pytest.mark.parametrize(
    ('annotation', 'area'),
    [
        (dict(bbox=[1, 2, 3, 4]), 12),
        (dict(bbox=[0, 0, 9, 9], segmentation=[[0, 0, 4, 0, 4, 3, 0, 3], [5, 5, 7, 5, 5, 7]]), 14),
        (dict(bbox=[0, 0, 2, 3], segmentation=[]), 6),
        (dict(bbox=[0, 0, 2, 3], segmentation=[[1, 1, 2]]), 6),
        (dict(bbox=[0, 0, 9, 9], segmentation=dict(size=[4, 5], counts=[3, 4, 6, 2, 5])), 6),
        (dict(segmentation=rle.encode(np.asfortranarray(np.eye(5, dtype=np.uint8)))), 5),
        (dict(bbox=[]), 0),
    ],
)
def test_object_area(annotation, area):
    assert object_area(annotation) == pytest.approx(area)
