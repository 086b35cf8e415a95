"""Calls tools/check.py as a user does."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from small_detector import detector_config, edit_json, write_dataset

from ccop_mm import apis

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def check(monkeypatch, capsys):
    """``check(*arguments)`` runs the tool in this process; returns its exit code and the lines of stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['check.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TOOLS / 'check.py'), run_name='__main__')
        captured = capsys.readouterr()
        return caught.value.code, captured.out.splitlines(), captured.err.splitlines()

    return call


@pytest.fixture
def config(tmp_path):
    write_dataset(tmp_path / 'data')
    detector_config(tmp_path / 'data').dump(tmp_path / 'detector.py')
    return tmp_path / 'detector.py'


def test_valid_config(check, config, tmp_path):
    code, lines, _ = check(config, '--work-dir', tmp_path / 'work')
    assert code == 0
    assert '24 images, 3 classes, 72 boxes, FasterRCNN with ResNet-18-FPN, 18 steps of 4' in lines[-1]
    assert not [line for line in lines if line.startswith('ERROR')]


def test_errors_and_warnings(check, config, tmp_path):
    edit_json(tmp_path / 'data/train.json', lambda content: content['annotations'][3].update(bbox=[1, 1, 0, 5]))
    options = ['--work-dir', tmp_path / 'work', '--cfg-options', 'model.roi_head.bbox_head.num_classes=80']
    code, lines, _ = check(config, *options)
    assert code == 2
    (error,) = [line for line in lines if line.startswith('ERROR')]
    assert error.startswith('ERROR model.roi_head.bbox_head.num_classes: ') and ' 80 ' in error
    assert [line for line in lines if line.startswith('WARNING') and 'train.json' in line]
    assert '1 error,' in lines[-1]
    assert not (tmp_path / 'work').exists()


def test_checkpoint_selects_the_test(check, config, tmp_path):
    content = json.loads((tmp_path / 'data/val.json').read_text())
    content['annotations'][0]['category_id'] = 77
    (tmp_path / 'data/val.json').write_text(json.dumps(content))
    (tmp_path / 'data/train.json').unlink()  # not read
    code, lines, error = check(config, tmp_path / 'absent.pth', '--work-dir', tmp_path / 'work')
    assert code == 2
    assert [line for line in lines if line.startswith('ERROR') and 'val.json' in line], (lines, error)
    assert any('absent.pth' in line for line in lines)


def test_test_and_resume_exclude_each_other(check, config):
    code, _, error = check(config, 'x.pth', '--resume', 'y.pth')
    assert code == 2 and '--resume' in error[-1]


def test_missing_config(check, tmp_path):
    code, _, error = check(tmp_path / 'absent.py')
    assert code == 2 and 'absent.py' in error[-1]


@pytest.mark.parametrize(
    ('tool', 'file', 'change', 'value'),
    [
        (
            'train.py',
            'train.json',
            lambda content: content['categories'][1].update(name='dgo'),
            "'dog' (nearest: 'dgo')",
        ),
        ('train.py', 'val.json', lambda content: content['annotations'][0].update(bbox=[1, 2, float('nan'), 3]), 'NaN'),
        ('test.py', 'val.json', lambda content: content['images'][0].update(width=48, height=64), 'val000.jpg'),
    ],
)
def test_run_is_not_started(config, tmp_path, monkeypatch, capsys, tool, file, change, value):
    edit_json(tmp_path / 'data' / file, change)
    arguments = [config, '--work-dir', tmp_path / 'work']
    if tool == 'test.py':
        torch.save(dict(state_dict={}), tmp_path / 'any.pth')
        arguments.insert(1, tmp_path / 'any.pth')
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOLS / tool), run_name='__main__')
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('ERROR') and value in line]
    assert len(lines) == 1
    assert not list((tmp_path / 'work').glob('*/*.log'))


def test_pretraining_without_its_data(check, small_config, tmp_path):
    config = tmp_path / 'pretraining.py'
    small_config().dump(config)
    assert check(config, '--work-dir', tmp_path / 'work')[0] == 0
    for key in ('proposal_file', 'ann_file'):
        option = f'train_dataloader.dataset.{key}=gone.npz'
        code, _, error = check(config, '--work-dir', tmp_path / 'work', '--cfg-options', option)
        assert code == 2 and 'gone.npz' in error[-1]


def test_earlier_run_is_an_error_unless_it_is_resumed(check, small_config, tmp_path):
    cfg = small_config()
    cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', interval=1)
    cfg.dump(tmp_path / 'pretraining.py')
    apis.train(tmp_path / 'pretraining.py', work_dir=tmp_path / 'work')
    arguments = (tmp_path / 'pretraining.py', '--work-dir', tmp_path / 'work')
    code, _, error = check(*arguments)
    assert code == 2 and 'epoch_1.pth' in error[-1] and '--resume' in error[-1]
    code, lines, _ = check(*arguments, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert code == 0, lines
    assert not [line for line in lines if line.startswith('WARNING default_hooks')]


def test_warnings_about_options_are_listed(check, config, tmp_path):
    with_variable = tmp_path / 'with_variable.py'
    with_variable.write_text(f"_base_ = ['{config}']\ndata_root = 'images/'\n")
    code, lines, _ = check(with_variable, '--work-dir', tmp_path / 'work', '--cfg-options', 'data_root=other/')
    assert code == 0 and [line for line in lines if line.startswith('WARNING') and 'data_root' in line]
