"""tools/train.py and tools/test.py with errors in the command line: one line, exit code 2, and nothing started."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py'


def run(folder, tool, *arguments):
    command = [sys.executable, ROOT / f'tools/{tool}.py', PAPER, *arguments, '--work-dir', folder / 'work']
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('option', 'found'),
    [
        ('modle.queue_len=8', ('modle', 'model')),
        ('custom_hooks.7.interval=8', ('custom_hooks', "'7'")),
    ],
)
def test_misspelt_option_is_one_line(tmp_path, option, found):
    done = run(tmp_path, 'train', '--cfg-options', option)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith('ERROR '))
    assert done.returncode == 2 and all(text in line for text in found)
    assert 'Traceback' not in done.stderr and not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_debug_option_prints_the_traceback(tmp_path):
    done = run(tmp_path, 'train', '--cfg-options', 'modle.queue_len=8', '--debug')
    assert done.returncode == 1 and done.stderr.startswith('Traceback') and 'PreflightError: ERROR ' in done.stderr


def test_idle_threads_sleep_unless_the_environment_configures_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    common_arguments = importlib.import_module('common_arguments')
    names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('KMP_BLOCKTIME', '1')
    common_arguments.limit_busy_waiting()
    assert 'OMP_WAIT_POLICY' not in os.environ
    monkeypatch.delenv('KMP_BLOCKTIME')
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    common_arguments.limit_busy_waiting()
    assert [os.environ.get(name) for name in names] == ['passive', '2000', None]


@pytest.mark.parametrize(
    'option', ["model.a=dict(type='X')", "model.a=f(type='X',b=1)", 'model.a={}', 'model.a=(1,2', 'no_value']
)
@pytest.mark.parametrize('tool', ['train', 'check', 'test'])
def test_option_that_cannot_be_parsed_is_one_line(tool, option, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', ROOT / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = ['config.py', *(['checkpoint.pth'] if tool == 'test' else []), '--cfg-options', option]
    with pytest.raises(SystemExit) as caught:
        module.parse_args(arguments)
    assert caught.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]
