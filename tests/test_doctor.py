"""The doctor on a sound installation and on simulated faults."""

import importlib
import os
import subprocess
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ccop_mm import doctor


def run_doctor(tmp_path, prepare=''):
    """Runs the command after ``prepare`` has run in its interpreter; returns exit code and output."""
    (tmp_path / 'sitecustomize.py').write_text(prepare)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, '-m', 'ccop_mm.doctor'],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not any(line.startswith('Traceback') for line in done.stderr.splitlines()), done.stderr
    return done.returncode, done.stdout


def test_command_without_mmcv(tmp_path):
    code, report = run_doctor(tmp_path, "import sys; sys.modules['mmcv'] = None")
    assert code == 1
    assert f'torch             {torch.__version__}' in report
    faults = [line for line in report.splitlines() if line.startswith('FAULT')]
    assert any('C++ ops' in line for line in faults)
    assert all('Cure: ' in line for line in faults)
    assert report.endswith('pre-training cannot run here\n')


def test_import_without_mmcv_names_the_doctor(tmp_path):
    code = "import sys; sys.modules['mmcv'] = None; import ccop_mm"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith('ImportError: ccop_mm cannot be used here: ModuleNotFoundError') and 'doctor' in last[1]


def test_sound_installation(capsys):
    assert doctor.main() == 0
    report = capsys.readouterr().out
    assert 'RoIAlign and nms run on cpu' in report and report.endswith('pre-training can run here\n')
    owner = 'onedl-mmcv' if doctor.is_installed('onedl-mmcv') else 'mmcv'
    assert metadata.version(owner) in next(line for line in report.splitlines() if line.startswith('mmcv '))


def faults_of(check):
    return [remark for remark in check() if isinstance(remark, doctor.Fault)]


def test_missing_module(monkeypatch):
    def import_module(name):
        if name == 'mmdet.datasets':
            raise ModuleNotFoundError("No module named 'imgaug'", name='imgaug')
        if name in ('mmselfsup.models', 'ccop_mm.models'):
            raise ModuleNotFoundError("No module named 'sklearn'", name='sklearn.cluster')
        return SimpleNamespace(mend=lambda: None)

    monkeypatch.setattr(importlib, 'import_module', import_module)
    sklearn, imgaug = faults_of(doctor.check_hosts)  # one line for each cause
    assert sklearn.fatal and sklearn.cure == 'pip install scikit-learn'
    assert not imgaug.fatal and '--no-deps imaug' in imgaug.cure


def test_failing_mend(monkeypatch):
    from ccop_mm import hosts

    def mend():
        raise AssertionError('MMCV==9 is used but incompatible.\nPlease install another.')

    monkeypatch.setattr(hosts, 'mend', mend)
    (fault,) = faults_of(doctor.check_hosts)
    assert fault.fatal and fault.cure == doctor.MAKE_ENV
    assert fault.what == 'ccop_mm.hosts cannot be used (AssertionError: MMCV==9 is used but incompatible)'


@pytest.mark.parametrize(
    ('error', 'cure'),
    [
        (ImportError('_ext.so: undefined symbol: _ZN2at4'), '--no-build-isolation'),
        (ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'), '--no-build-isolation'),
        (ModuleNotFoundError("No module named 'mmcv'", name='mmcv'), doctor.MAKE_ENV),
    ],
)
def test_missing_ops(monkeypatch, error, cure):
    class Ops(ModuleType):
        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, 'mmcv.ops', Ops('mmcv.ops'))
    (fault,) = faults_of(doctor.check_ops)
    assert fault.fatal and cure in fault.cure


@pytest.mark.parametrize('op', ['nms', 'roi_align'])
def test_wrong_ops(monkeypatch, op):
    import mmcv.ops

    right = getattr(mmcv.ops, op)

    def wrong(*args):
        result = right(*args)
        return (result[0], result[1] * 0) if op == 'nms' else result + 1

    monkeypatch.setattr(mmcv.ops, op, wrong)
    (fault,) = faults_of(doctor.check_ops)
    assert fault.fatal and 'wrong results on cpu' in fault.what


def test_missing_selective_search(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, 'ximgproc')
    (fault,) = faults_of(doctor.check_selective_search)
    assert not fault.fatal and fault.cure == doctor.REINSTALL_OPENCV


def test_versions_without_the_list_of_packages(monkeypatch):
    """As on Python 3.10, for distributions without top_level.txt."""
    described = [doctor.describe_version(name) for name in ('numpy', 'mmengine', 'torch')]
    monkeypatch.setattr(metadata, 'packages_distributions', dict)
    assert [doctor.describe_version(name) for name in ('numpy', 'mmengine', 'torch')] == described
    assert described[2] == torch.__version__ and doctor.describe_version('absent') == 'missing'


def test_two_owners(monkeypatch):
    versions = {'opencv-python': '4.1', 'opencv-contrib-python': '4.2', 'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, 'version', version)
    opencv, mmcv = faults_of(doctor.check_owners)
    assert (
        opencv.what.startswith('opencv-contrib-python and opencv-python own') and opencv.cure == doctor.REINSTALL_OPENCV
    )
    assert mmcv.what.startswith('mmcv and onedl-mmcv own') and 'make env' in mmcv.cure
    assert not opencv.fatal and not mmcv.fatal


def test_broken_gpu_ops(monkeypatch):
    def no_gpu_kernel(*args, device=None, **kwargs):
        raise RuntimeError('nms is not compiled with GPU support')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    tensor = torch.tensor
    monkeypatch.setattr(torch, 'tensor', lambda *a, device: tensor(*a) if device == 'cpu' else no_gpu_kernel())
    remarks = list(doctor.check_ops())
    assert remarks[0] == 'RoIAlign and nms run on cpu' and 'not compiled with GPU support' in remarks[1].what
