import json

import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.detection.skeleton import complete_metainfo
from ccop_mm.errors import InputError

NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l')


def predict(path, classes, noise=3.0, keep=0.8, extra=2, seed=0):
    """Detections near the truth and false ones, as data samples of the evaluator, in continuous coordinates."""
    rng = np.random.default_rng(seed)
    truth = json.loads(path.read_text())
    labels = {category['id']: classes.index(category['name']) for category in truth['categories']}
    num_keypoints = len(next(one['keypoints'] for one in truth['annotations'])) // 3
    samples = []
    for image in truth['images']:
        boxes, points, kinds = [], [], []
        for one in truth['annotations']:
            if one['image_id'] == image['id'] and rng.random() < keep:
                x, y, w, h = one['bbox']
                boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 2, 4))
                shift = np.array([x, y]) + 1 if not any(one['keypoints']) else 0.5
                points.append(
                    np.reshape(one['keypoints'], (-1, 3))[:, :2] + shift + rng.normal(0, noise, (num_keypoints, 2))
                )
                kinds.append(labels[one['category_id']])
        for _ in range(extra):
            corner = rng.random(2) * 40
            boxes.append(np.concatenate((corner, corner + 30)))
            points.append(corner + rng.random((num_keypoints, 2)) * 30)
            kinds.append(int(rng.integers(len(classes))))
        instances = dict(
            bboxes=torch.tensor(np.array(boxes), dtype=torch.float32),
            labels=torch.tensor(kinds),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            keypoints=torch.tensor(np.array(points), dtype=torch.float32),
            keypoint_scores=torch.rand(len(boxes), num_keypoints),
        )
        samples.append(dict(img_id=image['id'], ori_shape=(image['height'], image['width']), pred_instances=instances))
    return samples


def by_hand(path, samples, metainfo, offset):
    """pycocotools, called as its own demo does."""
    truth = COCO(str(path))
    ids = {category['name']: category['id'] for category in truth.loadCats(truth.getCatIds())}
    detections = []
    for sample in samples:
        p = sample['pred_instances']
        for points, label, score in zip(p['keypoints'], p['labels'].tolist(), p['scores'].tolist(), strict=True):
            flat = [number for x, y in (points.double() - offset).tolist() for number in (x, y, 1)]
            entry = dict(
                image_id=sample['img_id'], category_id=ids[metainfo['classes'][label]], keypoints=flat, score=score
            )
            detections.append(entry)
    evaluation = COCOeval(truth, truth.loadRes(detections), 'keypoints')
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


def test_figures_are_pycocotools_called_by_hand(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'])
    expected = by_hand(kites, samples, kite_meta, 0.5)
    figures = evaluate(samples, kite_meta, ann_file=str(kites), classwise=True)
    for name, value in zip(NAMES, expected.stats, strict=True):
        assert figures[f'coco/keypoints_{name}'] == pytest.approx(value, abs=5e-4)
    assert 0.1 < figures['coco/keypoints_mAP'] < 0.9
    assert 0 < figures['coco/bbox_mAP'] < 1
    precision = expected.eval['precision'][..., 0, 0]  # (T, R, categories), by category id: 3 is the arrow
    for place, name in enumerate(('arrow', 'kite')):
        assert figures[f'coco/{name}_keypoints_precision'] == pytest.approx(precision[:, :, place].mean(), abs=1e-3)


def test_real_people_with_cocos_sigmas(coco_cc31):
    path = coco_cc31 / 'annotations/person_keypoints.json'
    meta = complete_metainfo(CocoKeypointDataset.METAINFO)
    samples = predict(path, meta['classes'], noise=6.0)
    expected = by_hand(path, samples, meta, 0.5)
    figures = evaluate(samples, meta, ann_file=str(path), metric='keypoints')
    assert set(figures) == {f'coco/keypoints_{name}' for name in NAMES}
    assert [figures[f'coco/keypoints_{name}'] for name in NAMES] == pytest.approx(expected.stats.tolist(), abs=5e-4)
    assert 0.1 < figures['coco/keypoints_mAP'] < 0.9


def test_the_truth_is_perfect_and_half_a_pixel_counts(kites, kite_meta):
    perfect = predict(kites, kite_meta['classes'], noise=0, keep=1, extra=0)
    figures = evaluate(perfect, kite_meta, ann_file=str(kites), metric='keypoints')
    assert figures['coco/keypoints_mAP'] == 1
    fine = dict(kite_meta, sigmas=[0.003] * 4)
    assert evaluate(perfect, fine, ann_file=str(kites), metric='keypoints')['coco/keypoints_mAP'] == 1
    moved = evaluate(perfect, dict(fine, keypoint_offset=0.0), ann_file=str(kites), metric='keypoints')
    assert moved['coco/keypoints_mAP'] < 1


def test_without_an_annotation_file_the_data_set_is_the_truth(kites, kite_metainfo, kite_meta):
    dataset = CocoKeypointDataset(
        ann_file=str(kites), data_prefix=dict(img=''), metainfo=kite_metainfo, pipeline=[], test_mode=True
    )
    samples = predict(kites, kite_meta['classes'])
    expected = evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')
    for index, sample in enumerate(samples):
        sample['instances'] = dataset.get_data_info(index)['instances']
    assert evaluate(samples, kite_meta, metric='keypoints') == expected


def test_annotations_that_lack_keypoints_or_their_number(kites, kite_meta):
    """As pycocotools would have it with zeros and counts filled in."""
    samples = predict(kites, kite_meta['classes'])
    expected = evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')
    content = json.loads(kites.read_text())
    for one in content['annotations']:
        if not one.pop('num_keypoints'):
            del one['keypoints']
    kites.write_text(json.dumps(content))
    assert evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints') == expected


def test_no_detection_at_all_is_zero(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'], keep=0, extra=1)
    for sample in samples:
        sample['pred_instances'] = {key: value[:0] for key, value in sample['pred_instances'].items()}
    assert evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')['coco/keypoints_mAP'] == 0


def test_results_are_written_for_cocos_server(kites, kite_meta, tmp_path):
    samples = predict(kites, kite_meta['classes'])
    options = dict(format_only=True, outfile_prefix=str(tmp_path / 'out'))
    evaluate(samples, kite_meta, ann_file=str(kites), **options)
    written = json.loads((tmp_path / 'out.keypoints.json').read_text())
    assert len(written) == sum(len(sample['pred_instances']['scores']) for sample in samples)
    first = samples[0]['pred_instances']
    assert np.reshape(written[0]['keypoints'], (4, 3))[:, :2] == pytest.approx(first['keypoints'][0].numpy() - 0.5)
    assert written[0]['category_id'] == {'kite': 5, 'arrow': 3}[kite_meta['classes'][first['labels'][0]]]


def test_numbers_of_keypoints_that_differ_are_named(kites, kite_meta):
    samples = predict(kites, kite_meta['classes'])
    with pytest.raises(InputError, match='annotation 1 has 12 numbers.*5 keypoints'):
        evaluate(samples, dict(kite_meta, sigmas=[0.1] * 5), ann_file=str(kites), metric='keypoints')
    for sample in samples:
        for name in ('keypoints', 'keypoint_scores'):
            sample['pred_instances'][name] = sample['pred_instances'][name][:, :3]
    with pytest.raises(InputError, match='the model predicts 3 keypoints, the metainfo has 4'):
        evaluate(samples, kite_meta, ann_file=str(kites), metric='keypoints')
