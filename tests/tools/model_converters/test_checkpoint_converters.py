"""tools/model_converters/export_checkpoint.py and import_checkpoint.py as a user runs them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planted_code import Planted
from small_transfer import pretraining

from ccop_mm.weights import TARGETS
from ccop_mm.weights.formats import TARGET_ALIASES

TOOLS = Path(__file__).resolve().parents[3] / 'tools' / 'model_converters'
TOOL_NAMES = ['export_checkpoint.py', 'import_checkpoint.py']


@pytest.fixture
def call(call_tool):
    """Calls a converter; returns exit code, stdout and stderr."""
    return lambda tool, *arguments: call_tool(f'model_converters/{tool}', *arguments)


@pytest.mark.parametrize('tool', TOOL_NAMES)
def test_help_does_not_import_torch(tool):
    command = [sys.executable, '-X', 'importtime', str(TOOLS / tool), '--help']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert 'usage: ' in done.stdout and '--out' in done.stdout
    assert re.search(r'\| +argparse$', done.stderr, re.MULTILINE)
    assert not re.search(r'\| +(torch|ccop_mm)\b', done.stderr)


def test_choices_are_the_formats_of_the_package():
    tool = runpy.run_path(str(TOOLS / 'export_checkpoint.py'))
    assert tool['TARGETS'] == tuple(TARGETS) and tool['ALIASES'] == tuple(TARGET_ALIASES)


def test_unknown_format_is_an_error(call, tmp_path):
    code, _, error = call('export_checkpoint.py', tmp_path / 'epoch_800.pth', '--to', 'onnx')
    assert code == 2 and 'onnx' in error and 'torchvision' in error


def test_export_and_import(call, tmp_path):
    checkpoint = tmp_path / 'epoch_800.pth'
    torch.save(dict(state_dict=pretraining(18).state_dict(), meta=dict(epoch=800)), checkpoint)
    code, line, _ = call('export_checkpoint.py', checkpoint, '--to', 'detectron2')
    exported = tmp_path / 'epoch_800_detectron2.pth'
    assert code == 0 and exported.is_file()
    assert f'{exported}: ResNet-18 and FPN' in line and len(line.splitlines()) == 1
    out = tmp_path / 'back.safetensors'
    code, line, _ = call('import_checkpoint.py', exported, '--out', out)
    assert code == 0 and out.is_file() and str(out) in line and 'detectron2, epoch 800' in line


def test_export_to_the_former_format_name(call, tmp_path):
    checkpoint = tmp_path / 'epoch_800.pth'
    torch.save(dict(state_dict=pretraining(18).state_dict()), checkpoint)
    assert call('export_checkpoint.py', checkpoint, '--to', 'mmdet')[0] == 0
    assert (tmp_path / 'epoch_800_mmdet.pth').is_file()


def write_invalid_files(folder):
    state = pretraining(18).state_dict()
    torch.save(dict(state_dict=state, meta=Planted(folder / 'executed')), folder / 'code.pth')
    torch.save(dict(state_dict={**state, 'roi_head.bbox_head.fc_cls.bias': torch.zeros(1)}), folder / 'detector.pth')
    torch.save(dict(state_dict=state), folder / 'truncated.pth')
    os.truncate(folder / 'truncated.pth', 10_000)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('missing.pth', r'missing\.pth does not exist'),
        ('code.pth', r'code\.pth.*\(\w+\.mkdir\)'),
        ('truncated.pth', r'truncated\.pth.*truncated, damaged'),
        ('detector.pth', r'detector\.pth.*roi_head\.bbox_head\.fc_cls\.bias.*load_from'),
    ],
)
@pytest.mark.parametrize('tool', TOOL_NAMES)
def test_invalid_files_are_an_error_of_one_line(call, tmp_path, tool, name, message):
    write_invalid_files(tmp_path)
    to = ('--to', 'timm') if tool == 'export_checkpoint.py' else ()
    code, _, error = call(tool, tmp_path / name, *to, '--out', tmp_path / 'out.pth')
    assert code == 2 and re.match(f'error: .*{message}', error) and len(error.splitlines()) == 1
    assert not (tmp_path / 'out.pth').exists() and not (tmp_path / 'executed').exists()
