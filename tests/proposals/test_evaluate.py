"""Recall and overlap, compared with plain loops."""

import json

import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore
from ccop_mm.proposals.evaluate import evaluate
from ccop_mm.utils.errors import InputError


def plain_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def random_boxes(rng, n):
    top_left = rng.uniform(0, 60, (n, 2))
    return np.concatenate([top_left, top_left + rng.uniform(5, 60, (n, 2))], axis=1).astype(np.float32)


def write(path, images, annotations):
    path.write_text(json.dumps({'images': images, 'annotations': annotations}))
    return path


def annotation(image_id, box, **more):
    x1, y1, x2, y2 = map(float, box)
    return {'image_id': image_id, 'bbox': [x1, y1, x2 - x1, y2 - y1], **more}


def test_results_equal_plain_loops(tmp_path):
    rng = np.random.default_rng(0)
    images, annotations, entries, best = [], [], [], []
    for image_id in range(6):
        name = f'{image_id}.jpg'
        boxes, objects = random_boxes(rng, 12 * image_id), random_boxes(rng, 5)
        # The ids of the store differ from those of the json, as for a folder.
        entries.append((100 - image_id, name, (120, 130), boxes))
        images.append({'id': image_id, 'file_name': name, 'height': 120, 'width': 130})
        annotations += [annotation(image_id, box) for box in objects]
        best += [max((plain_iou(a, b) for b in boxes.tolist()), default=0) for a in objects.tolist()]
    annotations.append(annotation(3, (0, 0, 9, 9), iscrowd=1))
    annotations.append(annotation(3, (5, 5, 5, 9)))
    results = evaluate(ProposalStore(entries), write(tmp_path / 'x.json', images, annotations))
    assert results == {
        'images': 6,
        'images_left_out': 0,
        'objects': 30,
        'boxes_per_image': 30,
        'recall_50': pytest.approx(np.mean([value >= 0.5 for value in best])),
        'recall_70': pytest.approx(np.mean([value >= 0.7 for value in best])),
        'mean_best_overlap': pytest.approx(np.mean(best), abs=1e-6),
    }
    assert 0 < results['recall_70'] < results['recall_50'] < 1


def test_images_of_another_size_and_missing_images_are_left_out(tmp_path):
    box = np.array([[0, 0, 10, 10]], np.float32)
    store = ProposalStore([(1, 'a.jpg', (20, 30), box), (2, 'rotated.jpg', (20, 30), box)])
    names = ('a.jpg', 'rotated.jpg', 'absent.jpg')
    images = [{'id': i, 'file_name': name, 'height': 20, 'width': 30} for i, name in enumerate(names)]
    images[1].update(height=30, width=20)
    annotations = [annotation(i, (0, 0, 10, 10)) for i in range(3)]
    results = evaluate(store, write(tmp_path / 'x.json', images, annotations))
    assert (results['images'], results['images_left_out'], results['objects']) == (1, 2, 1)
    assert results['recall_70'] == 1


def test_invalid_annotations_are_rejected(tmp_path):
    store = ProposalStore([(1, 'a.jpg', (20, 30), np.zeros((0, 4)))])
    image = {'id': 1, 'file_name': 'a.jpg'}
    with pytest.raises(InputError, match='absent.json'):
        evaluate(store, tmp_path / 'absent.json')
    for annotations in (None, [{'image_id': 1}], [{'image_id': 1, 'bbox': [1, 2]}], [1]):
        with pytest.raises(InputError, match='x.json'):
            evaluate(store, write(tmp_path / 'x.json', [image], annotations))
    for images in ([image], [{'id': 5, 'file_name': 'b.jpg'}]):
        with pytest.raises(InputError, match='x.json'):
            evaluate(store, write(tmp_path / 'x.json', images, []))
