"""All patches together, in a new interpreter."""

import subprocess
import sys

import pytest

from ccop_mm.compat import PATCHES

# Simulates torchvision ops built for another torch; runs before torchvision is imported.
WITHOUT_TORCHVISION_OPS = """
import torch
load = torch.ops.load_library
def refuse(path):
    if 'torchvision' in str(path):
        raise OSError('built for another torch')
    load(path)
torch.ops.load_library = refuse
"""


@pytest.mark.slow
def test_patches_apply_after_upstream_imports_and_failed_imports():
    code = """
import sys
import threading
import mmdet.models
try:
    import torchvision
except RuntimeError as error:
    assert 'torchvision::nms does not exist' in str(error)
else:
    raise SystemExit('torchvision needs no patch')
try:
    import mmselfsup
except AssertionError as error:
    assert 'MMCV==' in str(error)
else:
    raise SystemExit('mmselfsup needs no patch')
assert 'mmcls.apis' in sys.modules, 'the failed import left no modules behind'
import mmcv
version = mmcv.__version__

import ccop_mm
assert mmcv.__version__ == version
import torchvision.transforms, mmselfsup.datasets
import mmcls
assert mmcls.apis is sys.modules['mmcls.apis']
from mmdet.registry import MODELS
assert MODELS.get('mmselfsup.MoCo').__name__ == 'MoCo' and MODELS.get('ResNet').__module__.startswith('mmdet')
from ccop_mm import compat
compat.apply_patches()  # a second time
"""
    command = [sys.executable, '-c', WITHOUT_TORCHVISION_OPS + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('patch', PATCHES, ids=lambda patch: patch.__name__)
def test_docstring_states_versions_fix_and_removal(patch):
    titles = [line.strip() for line in patch.__doc__.splitlines()]
    (problem,) = [title for title in titles if title.startswith('Problem (')]
    assert any(character.isdigit() for character in problem)
    assert 'Fix:' in titles and 'Remove when:' in titles
