"""Calls the tools of transfer learning as a user does: training, test, summary, checkpoint conversion, subsets."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from small_transfer import CONFIGS, coco_data, make_small, narrow_model, pretraining, read_config
from synthetic_scenes.scenes import write_scenes

TRANSFER = CONFIGS / 'transfer'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    return root / 'images', write_scenes(root, num_train=2, num_val=2, size=(64, 96))['val']


def write_config(path, scenes, tmp_path, **changes):
    cfg = read_config(path)
    classes = json.loads(scenes[1].read_text())['categories']
    options = {**narrow_model(cfg, len(classes)), **coco_data(cfg, *scenes)}
    options['default_hooks.checkpoint'] = dict(interval=1)
    options['visualizer.name'] = path.stem  # mmengine caches one per name, with the folder of the first
    small = make_small(path, {**options, **changes}, tmp_path / 'unused')
    for key in ('work_dir', 'experiment_name'):
        small.pop(key)
    small.dump(tmp_path / path.name)
    return tmp_path / path.name


@pytest.mark.slow
def test_train_test_summarize(call_tool, scenes, tmp_path):
    checkpoint = tmp_path / 'epoch_800.pth'
    torch.save(dict(state_dict=pretraining(18).state_dict()), checkpoint)
    mask = TRANSFER / 'mask_rcnn/mask-rcnn_r18-fpn_ccop-800e_1x_coco.py'
    retina = TRANSFER / 'retinanet/retinanet_r50-fpn_random_1x_coco.py'
    configs = [
        write_config(mask, scenes, tmp_path, **{'model.init_cfg.checkpoint': str(checkpoint)}),
        write_config(retina, scenes, tmp_path),
    ]
    work_dirs = [tmp_path / 'work' / config.stem for config in configs]
    for config, work_dir in zip(configs, work_dirs, strict=True):
        assert call_tool('train.py', config, '--work-dir', work_dir)[0] == 0
        assert (work_dir / 'iter_1.pth').is_file()

    code, table, error = call_tool('analysis_tools/summarize.py', *work_dirs, '--out', tmp_path / 'table.txt')
    assert (code, error) == (0, '')
    assert table == (tmp_path / 'table.txt').read_text()
    header, first, second = table.splitlines()
    assert header.split('  ')[0] == 'run' and 'box AP75' in header and 'mask AP50' in header
    assert first.split()[:3] == [work_dirs[0].name, 'epoch_800.pth', '1']
    assert second.split()[:3] == [work_dirs[1].name, 'random', '1'] and second.split()[-3:] == ['-'] * 3

    # pycocotools reads the detections.
    results, metrics = tmp_path / 'results/detections', tmp_path / 'metrics.json'
    arguments = (configs[0], work_dirs[0] / 'iter_1.pth', '--work-dir', tmp_path / 'test')
    code, *_ = call_tool('test.py', *arguments, '--results', results, '--out', metrics)
    assert code == 0
    assert sorted(path.name for path in results.parent.iterdir()) == ['detections.bbox.json', 'detections.segm.json']
    assert {'coco/bbox_mAP_75', 'coco/segm_mAP_50'} <= set(json.loads(metrics.read_text()))
    truth = COCO(str(scenes[1]))
    for kind in ('bbox', 'segm'):
        detections = json.loads(Path(f'{results}.{kind}.json').read_text())
        assert 0 < len(detections) <= 2 * 5
        assert {one['category_id'] for one in detections} <= set(truth.getCatIds())
        assert len(truth.loadRes(f'{results}.{kind}.json').getAnnIds()) == len(detections)


@pytest.mark.slow
def test_truncated_image_does_not_stop_training_or_test(call_tool, tmp_path):
    annotations = write_scenes(tmp_path, num_train=1, num_val=2, size=(64, 96))['val']
    image = tmp_path / 'images' / json.loads(annotations.read_text())['images'][0]['file_name']
    os.truncate(image, image.stat().st_size // 2)
    retina = TRANSFER / 'retinanet/retinanet_r50-fpn_random_1x_coco.py'
    config = write_config(retina, (tmp_path / 'images', annotations), tmp_path)
    # Trains on both images and validates.
    code, _, error = call_tool('train.py', config, '--work-dir', tmp_path / 'work')
    assert code == 0, error
    metrics = tmp_path / 'metrics.json'
    arguments = (config, tmp_path / 'work/iter_1.pth', '--work-dir', tmp_path / 'test', '--out', metrics)
    code, _, error = call_tool('test.py', *arguments)
    assert code == 0, error
    assert 'coco/bbox_mAP' in json.loads(metrics.read_text())
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert re.search(f'WARNING - .*{re.escape(str(image))}', log)


def test_coco_subset(call_tool, scenes, tmp_path):
    code, line, _ = call_tool('misc/coco_subset.py', scenes[1], '--percent', '50', '--out', tmp_path / 'half.json')
    assert code == 0 and line.startswith(f'{tmp_path}/half.json: 1 images, ')
    code, _, error = call_tool('misc/coco_subset.py', tmp_path / 'absent.json', '--out', tmp_path / 'x.json')
    assert code == 2 and f'{tmp_path}/absent.json' in error and len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'missing'),
    [
        ({'val_evaluator.ann_file': 'gone.json'}, 'gone.json'),
        ({'val_dataloader.dataset.ann_file': '/gone/val.json'}, '/gone/val.json'),
        ({'model.init_cfg.checkpoint': 'gone.pth'}, 'gone.pth'),
    ],
)
def test_missing_files_are_reported_before_training(call_tool, scenes, tmp_path, options, missing):
    path = TRANSFER / 'mask_rcnn/mask-rcnn_r18-fpn_ccop-800e_1x_coco.py'
    config = write_config(path, scenes, tmp_path, **options)
    code, _, error = call_tool('train.py', config, '--work-dir', tmp_path / 'work')
    # A finding of the checks, or the first missing file.
    assert code == 2 and re.match(f'(error:|ERROR) .*{missing}', error.splitlines()[-1])


def test_missing_voc_devkit_is_reported(call_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = TRANSFER / 'faster_rcnn/faster-rcnn_r50-fpn_random_24k_voc0712.py'
    code, _, error = call_tool('train.py', path, '--work-dir', tmp_path / 'work')
    assert code == 2
    assert re.match('error: .*data/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt', error.splitlines()[-1])
