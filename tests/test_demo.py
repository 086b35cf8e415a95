import json

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from ccop_mm import demo
from ccop_mm.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Nine photos in COCO layout with one masked object each."""
    rng = np.random.default_rng(0)
    source = tmp_path / 'source'
    (source / 'images').mkdir(parents=True)
    (source / 'annotations').mkdir()
    content = dict(images=[], annotations=[], categories=[dict(id=7, name='cat'), dict(id=9, name='traffic light')])
    for number in range(9):
        name = f'{number}.jpg'
        cv2.imwrite(str(source / 'images' / name), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        content['images'].append(dict(id=number, file_name=name, height=40, width=60))
        polygon = [5, 5, 30, 5, 30, 30, 5, 30]
        one = dict(id=number, image_id=number, category_id=7, bbox=[5, 5, 25, 25], area=625, iscrowd=0)
        content['annotations'].append({**one, 'segmentation': [polygon]})
    write(source, 'instances', content)
    return source, content


def write(source, name, content):
    (source / 'annotations' / f'{name}.json').write_text(json.dumps(content))


def test_one_json_serves_for_both_and_that_is_said(folder, tmp_path):
    data = demo.take_photos(folder[0], tmp_path / 'out', num_train=100, num_val=100)
    assert (data.train.photos, data.val.photos) == (9, 9)
    assert data.train.images == folder[0] / 'images'
    assert data.classes == ['cat', 'traffic light']
    assert 'the same ones' in data.note
    assert json.loads(data.train.annotations.read_text())['annotations'] == folder[1]['annotations']


def test_many_photos_are_cut_down_with_their_annotations(folder, tmp_path):
    source, content = folder
    (source / 'annotations' / 'instances.json').unlink()
    write(source, 'instances_train', content)
    write(source, 'instances_val', content)
    data = demo.take_photos(source, tmp_path / 'out', num_train=4, num_val=2)
    for split, count in ((data.train, 4), (data.val, 2)):
        kept = json.loads(split.annotations.read_text())
        assert len(kept['images']) == split.photos == count
        assert {one['image_id'] for one in kept['annotations']} == {image['id'] for image in kept['images']}
    assert '2 others' in data.note


def test_unusable_folders_are_one_line(folder, tmp_path):
    source, content = folder
    with pytest.raises(InputError, match='is not a folder'):
        demo.take_photos(tmp_path / 'absent', tmp_path, 1, 1)
    for one in content['annotations']:
        del one['segmentation']
    write(source, 'instances', content)
    with pytest.raises(InputError, match='has no mask'):
        demo.take_photos(source, tmp_path, 1, 1)
    (source / 'annotations' / 'instances.json').unlink()
    with pytest.raises(InputError, match=r'holds no annotations/\*\.json'):
        demo.take_photos(source, tmp_path, 1, 1)


def test_configs_name_the_data(folder, tmp_path):
    data = demo.take_photos(folder[0], tmp_path / 'out', 100, 100)
    pretrain, transfer = (Config.fromfile(path) for path in demo.write_configs(data, tmp_path / 'out', 60, 45))
    assert pretrain.train_dataloader.batch_size == 9  # no more than there are photos
    assert pretrain.train_cfg.max_epochs == pretrain.param_scheduler[0].T_max == 60
    assert pretrain.train_dataloader.dataset.proposal_file == str(data.proposals)
    assert transfer.train_cfg.max_epochs == 20  # 45 steps of 4 over 9 photos
    assert transfer.model.roi_head.bbox_head.num_classes == transfer.model.roi_head.mask_head.num_classes == 2
    assert transfer.model.init_cfg.checkpoint.endswith('pretrain/epoch_60.pth')
    assert transfer.test_evaluator.ann_file == str(data.val.annotations)
    assert transfer.val_dataloader is None


def test_only_its_own_folder_is_cleared(tmp_path):
    out = tmp_path / 'out'
    demo.prepare_folder(out)
    (out / 'old').touch()
    demo.prepare_folder(out)
    assert not (out / 'old').exists()
    (tmp_path / 'mine').touch()
    with pytest.raises(InputError, match='was not made by the demo'):
        demo.prepare_folder(tmp_path)
    assert (tmp_path / 'mine').exists()


@pytest.mark.parametrize('length, count, expected', [(3, 10, [0, 1, 2]), (11, 3, [0, 5, 10]), (30, 2, [0, 29])])
def test_pick_spreads_rows(length, count, expected):
    assert demo.pick(list(range(length)), count) == expected


def test_the_whole_road(tmp_path):
    # The tools themselves, one after another, on very little: every hand-over between the steps is real.
    table = demo.run_demo(
        tmp_path / 'out', pretrain_steps=2, transfer_steps=2, num_train=16, num_val=6, scenes=tmp_path / 'scenes'
    )
    assert (tmp_path / 'out' / 'summary.txt').read_text() == table
    assert (tmp_path / 'out' / 'curriculum.png').stat().st_size > 10_000
    for word in ('recall of the objects at IoU 0.5', 'embedding, pre-trained', 'box AP', 'mask AP', 'a step'):
        assert word in table
    log = (tmp_path / 'out' / 'logs' / 'transfer.log').read_text()
    assert 'CCOPPretrained: ' in log
    assert 'SyncBN became BN' in log
