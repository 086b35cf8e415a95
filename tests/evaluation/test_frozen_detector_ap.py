import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ccop_mm.evaluation.frozen_detector_ap import METRICS, box_ap
from ccop_mm.utils.errors import InputError


def random_box(rng):
    x, y, w, h = rng.uniform([0, 0, 8, 8], [60, 60, 50, 50])
    return [float(value) for value in (x, y, w, h)]


def random_dataset(seed=0, num_images=12):
    """Annotations of three classes, some of them crowds, and detections near some of them."""
    rng = np.random.default_rng(seed)
    content = dict(
        images=[dict(id=7 * number, file_name=f'{number}.png', width=110, height=110) for number in range(num_images)],
        categories=[dict(id=category_id, name=f'class {category_id}') for category_id in (2, 5, 9, 11)],
        annotations=[],
    )
    detections = []
    for image in content['images'][:-1]:  # the last one has no boxes
        for _ in range(rng.integers(1, 5)):
            box, category_id = random_box(rng), int(rng.choice([2, 5, 9]))
            entry = dict(id=len(content['annotations']), image_id=image['id'], category_id=category_id, bbox=box)
            entry.update(iscrowd=int(rng.random() < 0.2), area=box[2] * box[3])
            content['annotations'].append(entry)
            detections += [
                dict(
                    image_id=image['id'],
                    category_id=category_id if rng.random() < 0.8 else 5,
                    bbox=[float(value + rng.normal(0, noise)) for value in box],
                    score=float(rng.random()),
                )
                for noise in (1, 6, 15)
            ]
    detections.append(dict(image_id=content['images'][-1]['id'], category_id=2, bbox=[1, 2, 30, 40], score=0.99))
    return content, detections


def by_hand(folder, content, detections):
    """Calls pycocotools as its demo does, on files."""
    (folder / 'annotations.json').write_text(json.dumps(content))
    (folder / 'detections.json').write_text(json.dumps(detections))
    truth = COCO(str(folder / 'annotations.json'))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / 'detections.json')), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats[:3].tolist(), strict=True))


def test_equals_pycocotools_called_by_hand(tmp_path):
    content, detections = random_dataset()
    expected = by_hand(tmp_path, content, detections)
    assert 0.1 < expected['AP'] < expected['AP50'] < 0.95
    assert box_ap(content, detections) == pytest.approx(expected, abs=1e-12)


def test_class_agnostic_ap_is_that_of_a_single_class(tmp_path):
    content, detections = random_dataset(1)
    single, found = copy.deepcopy(content), copy.deepcopy(detections)
    for entry in [*single['annotations'], *found]:
        entry['category_id'] = 2
    expected = by_hand(tmp_path, single, found)
    assert box_ap(content, detections, class_agnostic=True) == pytest.approx(expected, abs=1e-12)
    assert expected['AP50'] != pytest.approx(box_ap(content, detections)['AP50'], abs=1e-4)


def test_subset_of_images(tmp_path):
    content, detections = random_dataset(2)
    chosen = {image['id'] for image in content['images'][::2]}
    part = {
        **content,
        'images': content['images'][::2],
        'annotations': [entry for entry in content['annotations'] if entry['image_id'] in chosen],
    }
    expected = by_hand(tmp_path, part, [entry for entry in detections if entry['image_id'] in chosen])
    assert box_ap(content, detections, chosen) == pytest.approx(expected, abs=1e-12)


def test_optional_fields_may_be_missing():
    content, detections = random_dataset(3)
    expected = box_ap(content, detections)
    for entry in content['annotations']:
        del entry['id'], entry['area']
        if not entry['iscrowd']:
            del entry['iscrowd']
    before = copy.deepcopy((content, detections))
    assert box_ap(content, detections) == expected
    assert (content, detections) == before


def test_perfect_detections_and_none():
    content, _ = random_dataset(4)
    objects = [entry for entry in content['annotations'] if not entry['iscrowd']]
    perfect = [dict(entry, score=0.5) for entry in objects]
    for class_agnostic in (False, True):
        assert box_ap(content, perfect, class_agnostic=class_agnostic) == dict.fromkeys(METRICS, pytest.approx(1))
        assert box_ap(content, [], class_agnostic=class_agnostic) == dict.fromkeys(METRICS, 0)


def test_bad_input():
    content, detections = random_dataset(5)
    with pytest.raises(InputError, match='image id 1234'):
        box_ap(content, [dict(detections[0], image_id=1234)])
    with pytest.raises(InputError, match='1 images'):
        box_ap(content, detections, [content['images'][-1]['id']])
