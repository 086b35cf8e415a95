"""tools/train.py, test.py, summarize.py, export.py, import.py and coco_subset.py, as a user calls them."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from small_transfer import CONFIGS, coco_data, make_small, narrow_model, pretraining, read_config

from ccop_mm.datasets.scenes import write_scenes

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
TRANSFER = CONFIGS / 'transfer'


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a tool in this process; returns the exit code, stdout and stderr."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    return root / 'images', write_scenes(root, num_train=2, num_val=2, size=(64, 96))['val']


def write_config(path, scenes, tmp_path, **changes):
    cfg = read_config(path)
    classes = json.loads(scenes[1].read_text())['categories']
    options = {**narrow_model(cfg, len(classes)), **coco_data(cfg, *scenes)}
    options['default_hooks.checkpoint'] = dict(interval=1)
    options['visualizer.name'] = path.stem  # mmengine keeps one for each name, with the first one's folder
    small = make_small(path, {**options, **changes}, tmp_path / 'unused')
    for key in ('work_dir', 'experiment_name'):
        small.pop(key)
    small.dump(tmp_path / path.name)
    return tmp_path / path.name


def test_train_test_summarize(call, scenes, tmp_path):
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
        assert call('train.py', config, '--work-dir', work_dir)[0] == 0
        assert (work_dir / 'iter_1.pth').is_file()

    code, table, error = call('summarize.py', *work_dirs, '--out', tmp_path / 'table.txt')
    assert (code, error) == (0, '')
    assert table == (tmp_path / 'table.txt').read_text()
    header, first, second = table.splitlines()
    assert header.split('  ')[0] == 'run' and 'box AP75' in header and 'mask AP50' in header
    assert first.split()[:3] == [work_dirs[0].name, 'epoch_800.pth', '1']
    assert second.split()[:3] == [work_dirs[1].name, 'random', '1'] and second.split()[-3:] == ['-'] * 3

    # The detections come as COCO json, which pycocotools takes, and give what the tool reports.
    results, metrics = tmp_path / 'results/detections', tmp_path / 'metrics.json'
    arguments = (configs[0], work_dirs[0] / 'iter_1.pth', '--work-dir', tmp_path / 'test')
    code, *_ = call('test.py', *arguments, '--results', results, '--out', metrics)
    assert code == 0
    assert sorted(path.name for path in results.parent.iterdir()) == ['detections.bbox.json', 'detections.segm.json']
    assert {'coco/bbox_mAP_75', 'coco/segm_mAP_50'} <= set(json.loads(metrics.read_text()))
    truth = COCO(str(scenes[1]))
    for kind in ('bbox', 'segm'):
        detections = json.loads(Path(f'{results}.{kind}.json').read_text())
        assert 0 < len(detections) <= 2 * 5
        assert {one['category_id'] for one in detections} <= set(truth.getCatIds())
        assert len(truth.loadRes(f'{results}.{kind}.json').getAnnIds()) == len(detections)


def test_a_truncated_photo_ends_neither_training_nor_test(call, tmp_path):
    annotations = write_scenes(tmp_path, num_train=1, num_val=2, size=(64, 96))['val']
    photo = tmp_path / 'images' / json.loads(annotations.read_text())['images'][0]['file_name']
    os.truncate(photo, photo.stat().st_size // 2)
    retina = TRANSFER / 'retinanet/retinanet_r50-fpn_random_1x_coco.py'
    config = write_config(retina, (tmp_path / 'images', annotations), tmp_path)
    code, _, error = call('train.py', config, '--work-dir', tmp_path / 'work')  # trains on both photos and validates
    assert code == 0, error
    metrics = tmp_path / 'metrics.json'
    arguments = (config, tmp_path / 'work/iter_1.pth', '--work-dir', tmp_path / 'test', '--out', metrics)
    code, _, error = call('test.py', *arguments)
    assert code == 0, error
    assert 'coco/bbox_mAP' in json.loads(metrics.read_text())
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert f'{photo} cannot be read, another takes its place' in log


def test_export_and_import(call, tmp_path):
    checkpoint = tmp_path / 'epoch_800.pth'
    torch.save(dict(state_dict=pretraining(18).state_dict(), meta=dict(epoch=800)), checkpoint)
    code, line, _ = call('export.py', checkpoint, '--to', 'detectron2')
    assert code == 0
    assert f'{tmp_path}/epoch_800_detectron2.pth: ResNet-18 and FPN under the names of detectron2' in line
    code, line, _ = call('import.py', tmp_path / 'epoch_800_detectron2.pth', '--out', tmp_path / 'back.safetensors')
    assert (code, 'from detectron2, epoch 800' in line) == (0, True)


class Planted:
    def __reduce__(self):
        return os.mkdir, ('planted',)


def faults(folder):
    state = pretraining(18).state_dict()
    torch.save(dict(state_dict=state, meta=Planted()), folder / 'code.pth')
    torch.save(dict(state_dict={**state, 'roi_head.bbox_head.fc_cls.bias': torch.zeros(1)}), folder / 'detector.pth')
    torch.save(dict(state_dict=state), folder / 'cut.pth')
    os.truncate(folder / 'cut.pth', 10_000)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('absent.pth', 'no checkpoint .*absent.pth'),
        ('code.pth', r'code.pth is no checkpoint of tensors and was not loaded: it holds code \(\w+.mkdir\)'),
        ('cut.pth', 'cut.pth is no checkpoint of tensors and was not loaded: it is cut short'),
        ('detector.pth', 'detector.pth: this is a detection checkpoint .* use load_from'),
    ],
)
@pytest.mark.parametrize('tool', ['import.py', 'export.py'])
def test_a_file_that_is_not_what_it_should_be_is_one_line(call, tmp_path, monkeypatch, tool, name, message):
    monkeypatch.chdir(tmp_path)
    faults(tmp_path)
    to = ('--to', 'timm') if tool == 'export.py' else ()
    code, _, error = call(tool, tmp_path / name, *to, '--out', tmp_path / 'x.pth')
    assert code == 2 and re.match(f'error: .*{message}', error) and len(error.splitlines()) == 1
    assert not Path('x.pth').exists() and not Path('planted').exists()


def test_coco_subset(call, scenes, tmp_path):
    code, line, _ = call('coco_subset.py', scenes[1], '--percent', '50', '--out', tmp_path / 'half.json')
    assert code == 0 and line.startswith(f'{tmp_path}/half.json: 1 images, ')
    code, _, error = call('coco_subset.py', tmp_path / 'absent.json', '--out', tmp_path / 'x.json')
    assert code == 2 and 'absent.json does not exist' in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'val_evaluator.ann_file': 'gone.json'}, 'gone.json, which the evaluator compares with, does not exist'),
        ({'val_dataloader.dataset.ann_file': '/gone/val.json'}, '/gone/val.json does not exist; name your data'),
        ({'model.init_cfg.checkpoint': 'gone.pth'}, 'no checkpoint gone.pth: pre-train first'),
    ],
)
def test_what_is_missing_is_named_before_training(call, scenes, tmp_path, options, message):
    path = TRANSFER / 'mask_rcnn/mask-rcnn_r18-fpn_ccop-800e_1x_coco.py'
    config = write_config(path, scenes, tmp_path, **options)
    code, _, error = call('train.py', config, '--work-dir', tmp_path / 'work')
    assert code == 2 and message in error


def test_a_missing_voc_devkit_is_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = TRANSFER / 'faster_rcnn/faster-rcnn_r50-fpn_random_24k_voc0712.py'
    code, _, error = call('train.py', path, '--work-dir', tmp_path / 'work')
    assert code == 2
    assert 'error: data/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt does not exist; name your data' in error
