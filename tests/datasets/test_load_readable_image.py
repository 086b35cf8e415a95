import json
import logging

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope

from ccop_mm.datasets import LoadReadableImage


@pytest.fixture
def folder(tmp_path):
    """A folder with a COCO json of three images with one object each; image 1 is truncated and image 2 is missing."""
    rng = np.random.default_rng(0)
    images = [dict(id=i, file_name=f'{i}.jpg', height=40, width=60) for i in range(3)]
    for number in range(2):
        cv2.imwrite(str(tmp_path / f'{number}.jpg'), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    content = (tmp_path / '1.jpg').read_bytes()
    (tmp_path / '1.jpg').write_bytes(content[: len(content) // 2])
    objects = [dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0) for i in range(3)]
    coco = dict(images=images, annotations=objects, categories=[dict(id=1, name='thing')])
    (tmp_path / 'instances.json').write_text(json.dumps(coco))
    return tmp_path


def build_dataset(folder, unreadable, **options):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(
                type='CocoDataset',
                ann_file=str(folder / 'instances.json'),
                data_prefix=dict(img=str(folder)),
                metainfo=dict(classes=('thing',)),
                pipeline=[
                    dict(type='LoadReadableImage', unreadable=unreadable),
                    dict(type='LoadAnnotations', with_bbox=True),
                    dict(type='PackDetInputs'),
                ],
                **options,
            )
        )


def test_training_replaces_unreadable_images(folder):
    dataset = build_dataset(folder, 'redraw')
    assert [dataset[index]['data_samples'].img_id for index in range(3)] == [0, 0, 0]


def test_testing_uses_blank_images_of_the_annotated_size(folder):
    dataset = build_dataset(folder, 'blank', test_mode=True)
    samples = [dataset[index] for index in range(3)]
    assert [sample['data_samples'].img_id for sample in samples] == [0, 1, 2]
    assert samples[0]['inputs'].float().std() > 10
    for sample in samples[1:]:
        assert sample['inputs'].shape == (3, 40, 60) and (sample['inputs'] == 114).all()
        assert sample['data_samples'].ori_shape == (40, 60)
        assert len(sample['data_samples'].gt_instances) == 1


def test_unreadable_images_are_logged_once(folder, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'ccop_mm.datasets.load_readable_image.print_log', lambda line, logger, level: lines.append((line, level))
    )
    load = LoadReadableImage()
    for _ in range(2):
        for number in (1, 2):
            assert load(dict(img_path=str(folder / f'{number}.jpg'))) is None
    assert [level for _, level in lines] == [logging.WARNING] * 2
    for number, (line, _) in zip((1, 2), lines, strict=True):
        assert f'{folder}/{number}.jpg' in line and len(line.splitlines()) == 1
    assert 'failed to load image' in lines[0][0], "mmcv's reason"


def test_readable_images_are_loaded_as_by_mmcv(folder):
    path = str(folder / '0.jpg')
    loaded = LoadReadableImage(to_float32=True)(dict(img_path=path))
    assert loaded['img'].dtype == np.float32 and loaded['ori_shape'] == (40, 60)
    np.testing.assert_array_equal(loaded['img'], cv2.imread(path).astype(np.float32))


def test_unknown_mode_raises():
    with pytest.raises(ValueError, match="'skip'"):
        LoadReadableImage('skip')
