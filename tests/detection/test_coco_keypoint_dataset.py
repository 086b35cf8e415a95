import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.utils.errors import InputError


def build_dataset(path, metainfo, **kwargs):
    return CocoKeypointDataset(
        ann_file=str(path), data_prefix=dict(img=str(path.parent)), metainfo=metainfo, pipeline=[], **kwargs
    )


def test_instances_match_mmdet_and_add_keypoints(kites, kite_metainfo):
    dataset = build_dataset(kites, kite_metainfo)
    plain = CocoDataset(
        ann_file=str(kites), data_prefix=dict(img=str(kites.parent)), metainfo=dict(classes=kite_metainfo['classes'])
    )
    annotations = {annotation['id']: annotation for annotation in json.loads(kites.read_text())['annotations']}
    assert len(dataset) == len(plain) == 8
    ids = iter(sorted(annotations))
    for index in range(8):
        info, expected = dataset.get_data_info(index), plain.get_data_info(index)
        assert info['flip_indices'] == [0, 2, 1, 3]
        assert len(info['instances']) == len(expected['instances'])
        for instance, plain_instance in zip(info['instances'], expected['instances'], strict=True):
            annotation = annotations[next(ids)]
            assert {key: instance[key] for key in plain_instance} == plain_instance
            points = np.array(annotation['keypoints'], dtype=np.float32).reshape(4, 3)
            assert np.array_equal(instance['keypoints'], points + np.float32([0.5, 0.5, 0]))
            assert instance['area'] == annotation['area']


def test_keypoints_stay_aligned_when_mmdet_drops_an_annotation(kites, kite_metainfo):
    content = json.loads(kites.read_text())
    outside, inside = [annotation for annotation in content['annotations'] if annotation['image_id'] == 1]
    outside['bbox'] = [200, 5, 30, 40]
    del inside['keypoints']
    kites.write_text(json.dumps(content))
    (instance,) = build_dataset(kites, kite_metainfo).get_data_info(1)['instances']
    assert instance['bbox'][:2] == inside['bbox'][:2]
    assert instance['keypoints'].shape == (4, 3) and not instance['keypoints'].any()


@pytest.mark.parametrize(('min_keypoints', 'expected'), [(0, 8), (1, 6), (5, 2)])
def test_min_keypoints_filters_training_images_only(kites, kite_metainfo, min_keypoints, expected):
    # Images 1 and 3 have 8 labeled keypoints, images 0, 2, 4 and 5 have 4.
    filter_cfg = dict(min_keypoints=min_keypoints)
    assert len(build_dataset(kites, kite_metainfo, filter_cfg=filter_cfg)) == expected
    assert len(build_dataset(kites, kite_metainfo, filter_cfg=filter_cfg, test_mode=True)) == 8


def test_default_metainfo_on_real_coco_images(coco_cc31):
    path = coco_cc31 / 'annotations/person_keypoints.json'
    dataset = DATASETS.build(
        dict(type='CocoKeypointDataset', ann_file=str(path), data_prefix=dict(img=''), filter_cfg=dict(min_keypoints=1))
    )
    instances = [instance for index in range(len(dataset)) for instance in dataset.get_data_info(index)['instances']]
    people = [instance for instance in instances if (instance['keypoints'][:, 2] > 0).any()]
    assert len(people) == 42
    inside = []
    for person in people:
        x1, y1, x2, y2 = person['bbox']
        x, y, flag = person['keypoints'].T
        inside += ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2))[flag > 0].tolist()
    # Boxes and keypoints were annotated separately, so a few keypoints are outside their box.
    assert sum(inside) > 0.95 * len(inside)


@pytest.mark.parametrize(
    ('change', 'pattern'),
    [
        (lambda content: content['annotations'][0]['keypoints'].pop(), r'\b1\b.*\b11\b.*\b12\b'),
        (
            lambda content: content['categories'][0].update(keypoints=['top', 'right', 'left', 'tail']),
            r"kite.*\['top', 'right', 'left', 'tail'\].*\['top', 'left', 'right', 'tail'\]",
        ),
        (
            lambda content: content.update(categories=[dict(id=5, name='bird')]),
            r"\['kite', 'arrow'\].*\[\]",
        ),
    ],
    ids=['number_of_values', 'keypoint_names', 'classes'],
)
def test_mismatched_annotations_raise(kites, kite_metainfo, change, pattern):
    content = json.loads(kites.read_text())
    change(content)
    kites.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f'{re.escape(str(kites))}.*{pattern}'):
        build_dataset(kites, kite_metainfo)


def test_labels_do_not_depend_on_the_order_of_categories(kites, kite_metainfo):
    def labels(classes):
        dataset = build_dataset(kites, dict(kite_metainfo, classes=classes))
        infos = map(dataset.get_data_info, range(len(dataset)))
        return [classes[instance['bbox_label']] for info in infos for instance in info['instances']]

    expected = labels(('kite', 'arrow'))
    assert set(expected) == {'kite', 'arrow'} and labels(('arrow', 'kite')) == expected
    content = json.loads(kites.read_text())
    content['categories'].reverse()
    kites.write_text(json.dumps(content))
    assert labels(('kite', 'arrow')) == labels(('arrow', 'kite')) == expected


def test_missing_area_is_that_of_the_polygon():
    faults = Path(__file__).resolve().parents[1] / 'data/faults'
    metainfo = dict(
        classes=('person',), keypoint_names=('a', 'b', 'c'), flip_pairs=(), skeleton=(), sigmas=0.1, keypoint_offset=0.5
    )
    dataset = build_dataset(faults / 'e15_noarea.json', metainfo)
    (instance,) = dataset.get_data_info(0)['instances']
    assert instance['area'] == 3600
