"""--help of every command line tool."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    path.relative_to(ROOT).as_posix()
    for folder in ('tools', 'demo')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if "if __name__ == '__main__'" in path.read_text(encoding='utf-8')
]
#: Imports that take seconds.
HEAVY = {'mmcv', 'mmdet', 'mmselfsup', 'torch', 'torchvision'}


def test_tools_are_found():
    assert {'tools/train.py', 'tools/test.py', 'tools/propose.py', 'demo/run_demo.py'} < set(TOOLS)


@pytest.mark.parametrize('tool', TOOLS)
def test_help_does_not_import_heavy_packages(tool, tmp_path):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, '-X', 'importtime', str(ROOT / tool), '--help']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith('usage: ')
    imported = set(re.findall(r'^import time: .*\| +(\w+)', done.stderr, re.MULTILINE))
    assert 'argparse' in imported
    assert not imported & HEAVY
