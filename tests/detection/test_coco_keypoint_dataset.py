import json

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ccop_mm.detection import CocoKeypointDataset
from ccop_mm.errors import InputError


def read(path, metainfo, **kwargs):
    return CocoKeypointDataset(
        ann_file=str(path), data_prefix=dict(img=str(path.parent)), metainfo=metainfo, pipeline=[], **kwargs
    )


def test_instances_are_mmdets_with_keypoints(kites, kite_metainfo):
    dataset = read(kites, kite_metainfo)
    plain = CocoDataset(
        ann_file=str(kites), data_prefix=dict(img=str(kites.parent)), metainfo=dict(classes=kite_metainfo['classes'])
    )
    truth = {one['id']: one for one in json.loads(kites.read_text())['annotations']}
    assert len(dataset) == len(plain) == 8
    ids = iter(sorted(truth))
    for index in range(8):
        info, expected = dataset.get_data_info(index), plain.get_data_info(index)
        assert info['flip_indices'] == [0, 2, 1, 3]
        assert len(info['instances']) == len(expected['instances'])
        for instance, plain_instance in zip(info['instances'], expected['instances'], strict=True):
            annotation = truth[next(ids)]
            assert {key: instance[key] for key in plain_instance} == plain_instance
            points = np.array(annotation['keypoints'], dtype=np.float32).reshape(4, 3)
            assert np.array_equal(instance['keypoints'], points + np.float32([0.5, 0.5, 0]))
            assert instance['area'] == annotation['area']


def test_what_mmdet_leaves_out_takes_no_keypoints_along(kites, kite_metainfo):
    content = json.loads(kites.read_text())
    outside, inside = [one for one in content['annotations'] if one['image_id'] == 1]
    outside['bbox'] = [200, 5, 30, 40]
    del inside['keypoints']
    kites.write_text(json.dumps(content))
    (instance,) = read(kites, kite_metainfo).get_data_info(1)['instances']
    assert instance['bbox'][:2] == inside['bbox'][:2]
    assert instance['keypoints'].shape == (4, 3) and not instance['keypoints'].any()


@pytest.mark.parametrize(('least', 'left'), [(0, 8), (1, 6), (5, 2)])
def test_photos_with_few_keypoints_do_not_train(kites, kite_metainfo, least, left):
    """Photos 1 and 3 have 8 labeled keypoints, 0, 2, 4 and 5 have 4."""
    assert len(read(kites, kite_metainfo, filter_cfg=dict(min_keypoints=least))) == left
    assert len(read(kites, kite_metainfo, filter_cfg=dict(min_keypoints=least), test_mode=True)) == 8


def test_metainfo_of_cocos_persons_on_real_photos(coco_cc31):
    path = coco_cc31 / 'annotations/person_keypoints.json'
    dataset = DATASETS.build(
        dict(type='CocoKeypointDataset', ann_file=str(path), data_prefix=dict(img=''), filter_cfg=dict(min_keypoints=1))
    )
    instances = [one for index in range(len(dataset)) for one in dataset.get_data_info(index)['instances']]
    people = [one for one in instances if (one['keypoints'][:, 2] > 0).any()]
    assert len(people) == 42
    inside = []
    for person in people:
        x1, y1, x2, y2 = person['bbox']
        x, y, flag = person['keypoints'].T
        inside += ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2))[flag > 0].tolist()
    # Annotators drew boxes and keypoints apart.
    assert sum(inside) > 0.95 * len(inside)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content['annotations'][0]['keypoints'].pop(), 'annotation 1 has 11 numbers.*need 12'),
        (
            lambda content: content['categories'][0].update(keypoints=['top', 'right', 'left', 'tail']),
            "category kite has the keypoints .*'right', 'left'.*make them equal",
        ),
        (
            lambda content: content.update(categories=[dict(id=5, name='bird')]),
            r"of the classes \['kite', 'arrow'\] it has \[\]",
        ),
        (
            lambda content: content['categories'].reverse(),
            r"it has \['arrow', 'kite'\].*in its order",
        ),
    ],
    ids=['length', 'names', 'classes', 'order of classes'],
)
def test_annotations_that_do_not_fit_are_named(kites, kite_metainfo, change, message):
    content = json.loads(kites.read_text())
    change(content)
    kites.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read(kites, kite_metainfo)
