import gc
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from ccop_mm.engine import UnreadableImageHook
from ccop_mm.utils.errors import InputError

NUM_IMAGES = 12


def build_dataset(folder, num_unreadable, unreadable, wrap=False):
    """A detection dataset of twelve images, of which some are truncated."""
    rng = np.random.default_rng(0)
    images = [dict(id=i, file_name=f'{i}.png', height=40, width=60) for i in range(NUM_IMAGES)]
    for image in images:
        path = folder / image['file_name']
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        if image['id'] < num_unreadable:
            path.write_bytes(path.read_bytes()[:50])
    objects = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0) for i in range(NUM_IMAGES)
    ]
    content = dict(images=images, annotations=objects, categories=[dict(id=1, name='thing')])
    (folder / 'instances.json').write_text(json.dumps(content))
    cfg = dict(
        type='CocoDataset',
        ann_file=str(folder / 'instances.json'),
        data_prefix=dict(img=str(folder)),
        metainfo=dict(classes=('thing',)),
        test_mode=unreadable == 'blank',
        pipeline=[dict(type='LoadReadableImage', unreadable=unreadable), dict(type='PackDetInputs')],
    )
    if wrap:
        cfg = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[cfg]))
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(cfg)


def read_all(dataset, mode, num_workers=0):
    np.random.seed(0)  # of the images that replace unreadable ones
    hook, loader = UnreadableImageHook(), DataLoader(dataset, num_workers=num_workers, collate_fn=pseudo_collate)
    getattr(hook, f'before_{mode}')(SimpleNamespace(**{f'{mode}_dataloader': loader}))
    return len(list(loader))


@pytest.mark.parametrize(('unreadable', 'mode'), [('redraw', 'train'), ('blank', 'val'), ('blank', 'test')])
def test_one_unreadable_image_is_tolerated_and_two_of_twelve_are_not(tmp_path, unreadable, mode):
    assert read_all(build_dataset(tmp_path, 1, unreadable), mode) == NUM_IMAGES
    with pytest.raises(InputError, match=rf'2 of the \d+ images .*{tmp_path}/1\.png.*max_unreadable_ratio=0\.01'):
        read_all(build_dataset(tmp_path, 2, unreadable), mode)


def test_workers_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.1)  # seconds to wait for each worker
    with pytest.raises(InputError, match=r'2 of the \d+ images') as caught:
        read_all(build_dataset(tmp_path, 2, 'blank'), 'test', num_workers=2)
    caught.value.__traceback__ = None
    del caught
    gc.collect()  # stops the workers


def test_datasets_inside_wrappers_are_counted(tmp_path):
    with pytest.raises(InputError, match=r'2 of the \d+ images'):
        read_all(build_dataset(tmp_path, 2, 'redraw', wrap=True), 'train')


def test_ratio_out_of_range():
    with pytest.raises(ValueError, match='1.5'):
        UnreadableImageHook(1.5)
