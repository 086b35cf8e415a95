"""Metrics that hooks monitor."""

import pytest
import torch
from mmdet.evaluation import CocoMetric
from small_detector import detector_config

import ccop_mm.detection  # noqa: F401  registers CocoKeypointMetric
from ccop_mm.preflight.findings import Level, Report
from ccop_mm.preflight.metric_names import check_metric_names


def find(root, evaluator=None, **hooks):
    cfg = detector_config(root, default_hooks=hooks)
    cfg.val_evaluator.update(evaluator or {})
    report = Report()
    check_metric_names(cfg, report)
    return report


@pytest.mark.parametrize(
    ('name', 'evaluator'),
    [
        ('auto', {}),
        ('coco/bbox_mAP', {}),
        ('coco/bbox_mAP', dict(type=CocoMetric)),
        (['coco/bbox_mAP_50', 'coco/bbox_mAP_l'], {}),
        ('coco/segm_mAP_75', dict(metric=['bbox', 'segm'])),
        ('coco/AR@100', dict(metric='proposal_fast')),
        ('coco/AR@10', dict(metric='proposal_fast', proposal_nums=(10,))),
        ('coco/AR_s@1000', dict(metric='proposal')),
        ('coco/bbox_AR@100', dict(metric_items=['AR@100'])),
        ('coco/horse_precision', dict(classwise=True)),
        ('mine/bbox_mAP', dict(prefix='mine')),
        ('coco/keypoints_mAP', dict(type='CocoKeypointMetric', metric=['bbox', 'keypoints'])),
        ('pascal_voc/AP50', dict(type='VOCMetric', metric='mAP')),
        ('pascal_voc/mAP', dict(type='VOCMetric', metric='mAP')),
        ('anything', dict(type='CityScapesMetric')),
    ],
    ids=str,
)
def test_names_that_the_evaluator_computes(root, name, evaluator):
    assert not find(root, evaluator, checkpoint=dict(type='CheckpointHook', save_best=name)).findings


@pytest.mark.parametrize(
    ('name', 'evaluator', 'nearest'),
    [
        ('coco/bbox_map', {}, 'coco/bbox_mAP'),
        ('bbox_mAP', {}, 'coco/bbox_mAP'),
        (['auto', 'coco/segm_mAP'], {}, 'coco/bbox_mAP'),
        ('coco/bbox_mAP', dict(metric_items=['AR@100']), 'coco/bbox_AR@100'),
        ('coco/horse_precision', {}, 'coco/'),
        ('coco/bbox_mAP', dict(type='VOCMetric', metric='mAP'), 'pascal_voc/'),
    ],
    ids=str,
)
def test_names_that_it_does_not_compute(root, name, evaluator, nearest):
    (finding,) = find(root, evaluator, checkpoint=dict(type='SafeCheckpointHook', save_best=name)).findings
    wrong = name if isinstance(name, str) else name[1]
    assert finding.level is Level.ERROR and finding.where == 'default_hooks.checkpoint.save_best'
    assert repr(wrong) in finding.what and nearest in finding.fix


@pytest.mark.parametrize(('item', 'nearest'), [('mAP50', 'mAP_50'), ('AR@10', 'AR@100'), (7, 'mAP, mAP_50')])
def test_unknown_items(root, item, nearest):
    (finding,) = find(root, dict(metric_items=['mAP', item])).errors
    assert finding.where == 'val_evaluator.metric_items' and repr(item) in finding.what and nearest in finding.fix


def test_early_stopping(root):
    cfg = detector_config(root, custom_hooks=[dict(type='EarlyStoppingHook', monitor='coco/mAP')])
    report = Report()
    check_metric_names(cfg, report)
    (finding,) = report.errors
    assert finding.where == 'custom_hooks.0.monitor' and 'coco/bbox_mAP' in finding.fix


def test_without_validation(root):
    cfg = detector_config(root, default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='coco/bbox_mAP')))
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    report = Report()
    check_metric_names(cfg, report)
    (finding,) = report.findings
    assert finding.level is Level.WARNING and 'coco/bbox_mAP' in finding.what


def test_names_are_those_of_the_metrics(root):
    """The names that are known are those that mmdet computes for a detection."""
    metric = CocoMetric(ann_file=f'{root}/val.json', metric=['bbox', 'proposal_fast'], classwise=True)
    metric.dataset_meta = dict(classes=('cat', 'dog', 'horse'))
    boxes, scores, labels = torch.tensor([[1.0, 1, 20, 20]]), torch.tensor([0.5]), torch.tensor([0])
    prediction = dict(bboxes=boxes, scores=scores, labels=labels)
    metric.process({}, [dict(pred_instances=prediction, img_id=number, ori_shape=(48, 64)) for number in range(1, 13)])
    computed = set(metric.evaluate(12))
    assert {'coco/bbox_mAP', 'coco/AR@100', 'coco/cat_precision'} <= computed
    for name in computed:
        options = dict(metric=['bbox', 'proposal_fast'], classwise=True)
        assert not find(root, options, checkpoint=dict(type='CheckpointHook', save_best=name)).findings
