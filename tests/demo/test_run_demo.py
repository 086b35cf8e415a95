"""Tests of the demo: the command line, the data, the configs, and one short run of all steps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import demo_data
import demo_pipeline
import numpy as np
import pytest
import run_demo
from mmengine.config import Config

from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def coco_folder(tmp_path):
    """A folder of nine images in COCO layout with one masked object each, and the content of its json."""
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
        annotation = dict(id=number, image_id=number, category_id=7, bbox=[5, 5, 25, 25], area=625, iscrowd=0)
        content['annotations'].append({**annotation, 'segmentation': [polygon]})
    write_annotations(source, 'instances', content)
    return source, content


def write_annotations(source, name, content):
    (source / 'annotations' / f'{name}.json').write_text(json.dumps(content))


def test_help_does_not_import_torch():
    # -X importtime lists every imported module on stderr.
    command = [sys.executable, '-X', 'importtime', ROOT / 'demo' / 'run_demo.py', '--help']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and '--train-images' in done.stdout
    modules = {line.rpartition('|')[2].strip().partition('.')[0] for line in done.stderr.splitlines()}
    assert 'argparse' in modules
    assert modules.isdisjoint({'torch', 'numpy', 'mmengine', 'ccop_mm'})


def test_old_option_names_are_aliases():
    defaults = run_demo.parse_args([])
    assert (defaults.out, defaults.data) == (Path('work_dirs/demo'), None)
    assert (defaults.pretrain_steps, defaults.transfer_steps) == (180, 240)
    assert (defaults.train_images, defaults.val_images) == (96, 48)
    args = run_demo.parse_args(['--train-photos', '5', '--val-photos', '3'])  # codespell:ignore photos
    assert (args.train_images, args.val_images) == (5, 3)


def test_bad_data_folder_exits_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_demo.main(['--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'absent')])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / 'absent') in line


def test_single_json_is_used_for_training_and_evaluation(coco_folder, tmp_path):
    source, content = coco_folder
    data = demo_data.take_images(source, tmp_path / 'out', num_train=100, num_val=100)
    assert (data.train.num_images, data.val.num_images) == (9, 9)
    assert data.train.images == source / 'images'
    assert data.classes == ['cat', 'traffic light']
    train, val = (json.loads(split.annotations.read_text()) for split in (data.train, data.val))
    assert train == val and train['annotations'] == content['annotations']
    assert 'optimistic' in data.description


def test_large_sets_are_reduced_with_their_annotations(coco_folder, tmp_path):
    source, content = coco_folder
    (source / 'annotations' / 'instances.json').unlink()
    write_annotations(source, 'instances_train', content)
    write_annotations(source, 'instances_val', content)
    data = demo_data.take_images(source, tmp_path / 'out', num_train=4, num_val=2)
    for split, count in ((data.train, 4), (data.val, 2)):
        kept = json.loads(split.annotations.read_text())
        assert len(kept['images']) == split.num_images == count
        assert {one['image_id'] for one in kept['annotations']} == {image['id'] for image in kept['images']}
    assert '2 others' in data.description and 'optimistic' not in data.description


def test_unusable_folders_raise_input_error(coco_folder, tmp_path):
    source, content = coco_folder
    with pytest.raises(InputError, match=str(tmp_path / 'absent')):
        demo_data.take_images(tmp_path / 'absent', tmp_path, 1, 1)
    for annotation in content['annotations']:
        del annotation['segmentation']
    write_annotations(source, 'instances', content)
    with pytest.raises(InputError, match=r'instances\.json.*segmentation'):
        demo_data.take_images(source, tmp_path, 1, 1)
    (source / 'annotations' / 'instances.json').unlink()
    with pytest.raises(InputError, match=rf'{source}.*annotations/\*\.json'):
        demo_data.take_images(source, tmp_path, 1, 1)


def test_configs_refer_to_the_data(coco_folder, tmp_path):
    data = demo_data.take_images(coco_folder[0], tmp_path / 'out', 100, 100)
    configs = demo_pipeline.write_configs(data, tmp_path / 'out', 60, 45)
    pretrain, transfer = (Config.fromfile(path) for path in configs)
    assert pretrain.train_dataloader.batch_size == 9  # at most the number of images
    assert pretrain.train_cfg.max_epochs == pretrain.param_scheduler[0].T_max == 60
    assert pretrain.train_dataloader.dataset.proposal_file == str(data.proposals)
    assert transfer.train_cfg.max_epochs == 20  # 45 iterations of 4 images over 9 images
    assert transfer.model.roi_head.bbox_head.num_classes == transfer.model.roi_head.mask_head.num_classes == 2
    assert transfer.model.init_cfg.checkpoint.endswith('pretrain/epoch_60.pth')
    assert transfer.test_evaluator.ann_file == str(data.val.annotations)
    assert transfer.val_dataloader is None


def test_only_a_folder_of_the_demo_is_cleared(tmp_path):
    out = tmp_path / 'out'
    demo_pipeline.prepare_folder(out)
    (out / 'old').touch()
    demo_pipeline.prepare_folder(out)
    assert not (out / 'old').exists()
    (tmp_path / 'mine').touch()
    with pytest.raises(InputError, match=str(tmp_path)):
        demo_pipeline.prepare_folder(tmp_path)
    assert (tmp_path / 'mine').exists()


@pytest.mark.parametrize('length, count, expected', [(3, 10, [0, 1, 2]), (11, 3, [0, 5, 10]), (30, 2, [0, 29])])
def test_pick_evenly(length, count, expected):
    assert demo_pipeline.pick_evenly(list(range(length)), count) == expected


@pytest.mark.slow
def test_all_steps_run_end_to_end(tmp_path):
    """Runs the real tools one after another on very little data, so that every file between two steps is checked."""
    summary = demo_pipeline.run_demo(
        tmp_path / 'out', pretrain_steps=2, transfer_steps=2, num_train=16, num_val=6, scenes=tmp_path / 'scenes'
    )
    assert (tmp_path / 'out' / 'summary.txt').read_text() == summary
    assert (tmp_path / 'out' / 'curriculum.png').stat().st_size > 10_000
    for words in ('recall at IoU 0.5', 'embedding, pre-trained', 'box AP', 'mask AP', 'iteration '):
        assert words in summary
    log = (tmp_path / 'out' / 'logs' / 'transfer.log').read_text()
    assert 'CCOPPretrained: ' in log
    assert re.search(r'SyncBN [^\n]*\bBN\b', log)  # the line that reports the replacement of the norm layers
