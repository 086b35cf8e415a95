import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.utils.errors import InputError

FAULTS = Path(__file__).resolve().parents[1] / 'data/faults'
NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l')


def predict(path, classes, noise=3.0, keep=0.8, extra=2, seed=0):
    """Returns noisy copies of the ground truth and false detections, as data samples in continuous coordinates."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    content = json.loads(path.read_text())
    label_of_category = {category['id']: classes.index(category['name']) for category in content['categories']}
    num_keypoints = len(content['annotations'][0]['keypoints']) // 3
    samples = []
    for image in content['images']:
        boxes, points, labels = [], [], []
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id'] and rng.random() < keep:
                x, y, w, h = annotation['bbox']
                boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 2, 4))
                shift = np.array([x, y]) + 1 if not any(annotation['keypoints']) else 0.5
                annotated = np.reshape(annotation['keypoints'], (-1, 3))[:, :2]
                points.append(annotated + shift + rng.normal(0, noise, (num_keypoints, 2)))
                labels.append(label_of_category[annotation['category_id']])
        for _ in range(extra):
            corner = rng.random(2) * 40
            boxes.append(np.concatenate((corner, corner + 30)))
            points.append(corner + rng.random((num_keypoints, 2)) * 30)
            labels.append(int(rng.integers(len(classes))))
        instances = dict(
            bboxes=torch.tensor(np.array(boxes), dtype=torch.float32),
            labels=torch.tensor(labels),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            keypoints=torch.tensor(np.array(points), dtype=torch.float32),
            keypoint_scores=torch.rand(len(boxes), num_keypoints, generator=generator),
        )
        samples.append(dict(img_id=image['id'], ori_shape=(image['height'], image['width']), pred_instances=instances))
    return samples


def evaluate_with_pycocotools(path, samples, metainfo, offset):
    """Evaluates keypoints with pycocotools alone, following its demo."""
    ground_truth = COCO(str(path))
    ids = {category['name']: category['id'] for category in ground_truth.loadCats(ground_truth.getCatIds())}
    detections = []
    for sample in samples:
        predictions = sample['pred_instances']
        rows = (predictions['keypoints'], predictions['labels'].tolist(), predictions['scores'].tolist())
        for points, label, score in zip(*rows, strict=True):
            flat = [value for x, y in (points.double() - offset).tolist() for value in (x, y, 1)]
            entry = dict(
                image_id=sample['img_id'], category_id=ids[metainfo['classes'][label]], keypoints=flat, score=score
            )
            detections.append(entry)
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(detections), 'keypoints')
    evaluation.params.kpt_oks_sigmas = np.array(metainfo['sigmas'])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def evaluate(samples, metainfo, **kwargs):
    metric = METRICS.build(dict(type='CocoKeypointMetric', **kwargs))
    metric.dataset_meta = metainfo
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


@pytest.fixture
def kite_meta(kite_metainfo):
    return complete_metainfo(kite_metainfo)


def test_metrics_match_pycocotools(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'])
    expected = evaluate_with_pycocotools(kites, samples, kite_meta, 0.5)
    metrics = evaluate(samples, kite_meta, ann_file=str(kites), classwise=True)
    for name, value in zip(NAMES, expected.stats, strict=True):
        assert metrics[f'coco/keypoints_{name}'] == pytest.approx(value, abs=5e-4)
    assert 0.1 < metrics['coco/keypoints_mAP'] < 0.9
    assert 0 < metrics['coco/bbox_mAP'] < 1
    precision = expected.eval['precision'][..., 0, 0]  # (T, R, categories), sorted by category id: arrow 3, kite 5
    for index, name in enumerate(('arrow', 'kite')):
        assert metrics[f'coco/{name}_keypoints_precision'] == pytest.approx(precision[:, :, index].mean(), abs=1e-3)


def test_metrics_match_pycocotools_on_real_images_with_coco_sigmas(coco_cc31):
    path = coco_cc31 / 'annotations/person_keypoints.json'
    meta = complete_metainfo(CocoKeypointDataset.METAINFO)
    samples = predict(path, meta['classes'], noise=6.0)
    expected = evaluate_with_pycocotools(path, samples, meta, 0.5)
    metrics = evaluate(samples, meta, ann_file=str(path), metric='keypoints')
    assert set(metrics) == {f'coco/keypoints_{name}' for name in NAMES}
    assert [metrics[f'coco/keypoints_{name}'] for name in NAMES] == pytest.approx(expected.stats.tolist(), abs=5e-4)
    assert 0.1 < metrics['coco/keypoints_mAP'] < 0.9


def test_ground_truth_scores_1_only_with_the_right_keypoint_offset(kites, kite_meta):
    perfect = predict(kites, kite_meta['classes'], noise=0, keep=1, extra=0)
    metrics = evaluate(perfect, kite_meta, ann_file=str(kites), metric='keypoints')
    assert metrics['coco/keypoints_mAP'] == 1
    # Sigmas so small that an error of half a pixel matters.
    fine = dict(kite_meta, sigmas=[0.003] * 4)
    assert evaluate(perfect, fine, ann_file=str(kites), metric='keypoints')['coco/keypoints_mAP'] == 1
    moved = evaluate(perfect, dict(fine, keypoint_offset=0.0), ann_file=str(kites), metric='keypoints')
    assert moved['coco/keypoints_mAP'] < 1


def test_ground_truth_comes_from_the_dataset_without_an_annotation_file(kites, kite_metainfo, kite_meta):
    dataset = CocoKeypointDataset(
        ann_file=str(kites), data_prefix=dict(img=''), metainfo=kite_metainfo, pipeline=[], test_mode=True
    )
    samples = predict(kites, kite_meta['classes'])
    expected = evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')
    for index, sample in enumerate(samples):
        sample['instances'] = dataset.get_data_info(index)['instances']
    assert evaluate(samples, kite_meta, metric='keypoints') == expected


def test_missing_keypoints_and_num_keypoints_are_filled_in(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'])
    expected = evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')
    content = json.loads(kites.read_text())
    for annotation in content['annotations']:
        if not annotation.pop('num_keypoints'):
            del annotation['keypoints']
    kites.write_text(json.dumps(content))
    assert evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints') == expected


def test_ap_is_0_without_detections(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'], keep=0, extra=1)
    for sample in samples:
        sample['pred_instances'] = {key: value[:0] for key, value in sample['pred_instances'].items()}
    assert evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')['coco/keypoints_mAP'] == 0


def test_results_are_written_in_coco_format(kites, kite_meta, tmp_path):
    samples = predict(kites, kite_meta['classes'])
    options = dict(format_only=True, outfile_prefix=str(tmp_path / 'out'))
    evaluate(samples, kite_meta, ann_file=str(kites), **options)
    written = json.loads((tmp_path / 'out.keypoints.json').read_text())
    assert len(written) == sum(len(sample['pred_instances']['scores']) for sample in samples)
    first = samples[0]['pred_instances']
    assert np.reshape(written[0]['keypoints'], (4, 3))[:, :2] == pytest.approx(first['keypoints'][0].numpy() - 0.5)
    assert written[0]['category_id'] == {'kite': 5, 'arrow': 3}[kite_meta['classes'][first['labels'][0]]]


def test_mismatched_number_of_keypoints_raises(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'])
    with pytest.raises(InputError, match=r'\b1\b.*\b12\b.*\b15\b'):
        evaluate(samples, dict(kite_meta, sigmas=[0.1] * 5), ann_file=str(kites), metric='keypoints')
    for sample in samples:
        for name in ('keypoints', 'keypoint_scores'):
            sample['pred_instances'][name] = sample['pred_instances'][name][:, :3]
    with pytest.raises(InputError, match=r'\b3\b.*\b4\b'):
        evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')


@pytest.mark.parametrize('change', [dict(), dict(id=0), dict(id=0, area=3600)])
def test_perfect_detection_has_ap_1_without_area_and_with_annotation_id_0(tmp_path, change):
    content = json.loads((FAULTS / 'e15_noarea.json').read_text())
    content['annotations'][0].update(change)
    path = tmp_path / 'person.json'
    path.write_text(json.dumps(content))
    metainfo = dict(
        classes=('person',), keypoint_names=('a', 'b', 'c'), flip_pairs=(), skeleton=(), sigmas=0.1, keypoint_offset=0.5
    )
    (sample,) = predict(path, ['person'], noise=0, keep=1, extra=0)
    sample['pred_instances']['keypoints'] = torch.tensor([[[20.5, 20.5], [40.5, 20.5], [30.5, 50.5]]])
    sample['pred_instances']['bboxes'] = torch.tensor([[10.0, 10.0, 70.0, 70.0]])
    metrics = evaluate([sample], complete_metainfo(metainfo), ann_file=str(path))
    assert metrics['coco/keypoints_mAP'] == 1 and metrics['coco/bbox_mAP'] == 1


def test_metrics_do_not_depend_on_the_order_of_categories(kites, kite_metainfo):
    results = []
    for reverse in (False, True):
        for classes in (('kite', 'arrow'), ('arrow', 'kite')):
            meta = complete_metainfo(dict(kite_metainfo, classes=classes))
            samples = predict(kites, classes, extra=0)
            results.append(evaluate(samples, meta, ann_file=str(kites), classwise=True))
        if not reverse:
            content = json.loads(kites.read_text())
            content['categories'].reverse()
            kites.write_text(json.dumps(content))
    assert all(metrics == results[0] for metrics in results)
    assert results[0]['coco/kite_keypoints_precision'] != results[0]['coco/arrow_keypoints_precision']
