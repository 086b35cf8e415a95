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
def photos(tmp_path):
    """Three photos with an object each, of which number 1 is cut off and number 2 absent; returns the folder."""
    rng = np.random.default_rng(0)
    images = [dict(id=i, file_name=f'{i}.jpg', height=40, width=60) for i in range(3)]
    for number in range(2):
        cv2.imwrite(str(tmp_path / f'{number}.jpg'), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    whole = (tmp_path / '1.jpg').read_bytes()
    (tmp_path / '1.jpg').write_bytes(whole[: len(whole) // 2])
    objects = [dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0) for i in range(3)]
    content = dict(images=images, annotations=objects, categories=[dict(id=1, name='thing')])
    (tmp_path / 'photos.json').write_text(json.dumps(content))
    return tmp_path


def dataset(photos, unreadable, **options):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(
            dict(
                type='CocoDataset',
                ann_file=str(photos / 'photos.json'),
                data_prefix=dict(img=str(photos)),
                metainfo=dict(classes=('thing',)),
                pipeline=[
                    dict(type='LoadReadableImage', unreadable=unreadable),
                    dict(type='LoadAnnotations', with_bbox=True),
                    dict(type='PackDetInputs'),
                ],
                **options,
            )
        )


def test_training_draws_another_photo(photos):
    data = dataset(photos, 'redraw')
    assert [data[index]['data_samples'].img_id for index in range(3)] == [0, 0, 0]


def test_testing_takes_a_blank_photo_of_the_annotated_size(photos):
    data = dataset(photos, 'blank', test_mode=True)
    samples = [data[index] for index in range(3)]
    assert [sample['data_samples'].img_id for sample in samples] == [0, 1, 2]
    assert samples[0]['inputs'].float().std() > 10
    for sample in samples[1:]:
        assert sample['inputs'].shape == (3, 40, 60) and (sample['inputs'] == 114).all()
        assert sample['data_samples'].ori_shape == (40, 60)
        assert len(sample['data_samples'].gt_instances) == 1


def test_a_photo_is_named_once(photos, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'ccop_mm.datasets.readable_image.print_log', lambda line, logger, level: lines.append((line, level))
    )
    load = LoadReadableImage()
    for _ in range(2):
        for number in (1, 2):
            assert load(dict(img_path=str(photos / f'{number}.jpg'))) is None
    assert [level for _, level in lines] == [logging.WARNING] * 2
    assert lines[0][0].startswith(f'{photos}/1.jpg cannot be read, another takes its place: failed to load image')
    assert lines[1][0].startswith(f'{photos}/2.jpg cannot be read, another takes its place: ')


def test_reads_like_mmcv(photos):
    path = str(photos / '0.jpg')
    loaded = LoadReadableImage(to_float32=True)(dict(img_path=path))
    assert loaded['img'].dtype == np.float32 and loaded['ori_shape'] == (40, 60)
    np.testing.assert_array_equal(loaded['img'], cv2.imread(path).astype(np.float32))


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="'redraw' or 'blank', got 'skip'"):
        LoadReadableImage('skip')
