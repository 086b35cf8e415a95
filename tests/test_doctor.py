"""The doctor in a working environment and with simulated problems."""

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
    """Runs the command in an interpreter that executes ``prepare`` first; returns exit code and output."""
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
    errors = [line for line in report.splitlines() if line.startswith('ERROR: ')]
    assert any('C++ ops' in line for line in errors)
    assert all('. Fix: ' in line for line in errors)
    assert report.endswith('pre-training cannot run here\n')


@pytest.mark.slow
def test_import_without_mmcv_refers_to_the_doctor(tmp_path):
    code = "import sys; sys.modules['mmcv'] = None; import ccop_mm"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    message = done.stderr.rpartition('\nImportError: ')[2]
    assert done.returncode == 1
    assert 'ccop_mm' in message and 'ModuleNotFoundError' in message and 'python -m ccop_mm.doctor' in message


def test_working_environment(capsys):
    assert doctor.main() == 0
    report = capsys.readouterr().out
    assert 'RoIAlign and nms work on cpu' in report and report.endswith('pre-training can run here\n')
    owner = 'onedl-mmcv' if doctor.is_installed('onedl-mmcv') else 'mmcv'
    assert metadata.version(owner) in next(line for line in report.splitlines() if line.startswith('mmcv '))


def find_problems(check):
    return [result for result in check() if isinstance(result, doctor.Problem)]


def test_missing_module(monkeypatch):
    def import_module(name):
        if name == 'mmdet.datasets':
            raise ModuleNotFoundError("No module named 'imgaug'", name='imgaug')
        if name in ('mmselfsup.models', 'ccop_mm.models'):
            raise ModuleNotFoundError("No module named 'sklearn'", name='sklearn.cluster')
        return SimpleNamespace(apply_patches=lambda: None)

    monkeypatch.setattr(importlib, 'import_module', import_module)
    sklearn, imgaug = find_problems(doctor.check_upstream)  # one problem per cause
    assert sklearn.fatal and sklearn.fix == 'pip install scikit-learn'
    assert not imgaug.fatal and '--no-deps imaug' in imgaug.fix


def test_failing_patch(monkeypatch):
    from ccop_mm import compat

    def apply_patches():
        raise AssertionError('MMCV==9 is used but incompatible.\nPlease install another.')

    monkeypatch.setattr(compat, 'apply_patches', apply_patches)
    (problem,) = find_problems(doctor.check_upstream)
    assert problem.fatal and problem.fix == doctor.MAKE_ENV
    assert problem.description == 'ccop_mm.compat cannot be used (AssertionError: MMCV==9 is used but incompatible)'


@pytest.mark.parametrize(
    ('error', 'fix'),
    [
        (ImportError('_ext.so: undefined symbol: _ZN2at4'), '--no-build-isolation'),
        (ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'), '--no-build-isolation'),
        (ModuleNotFoundError("No module named 'mmcv'", name='mmcv'), doctor.MAKE_ENV),
    ],
)
def test_missing_ops(monkeypatch, error, fix):
    class Ops(ModuleType):
        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, 'mmcv.ops', Ops('mmcv.ops'))
    (problem,) = find_problems(doctor.check_ops)
    assert problem.fatal and fix in problem.fix


@pytest.mark.parametrize('op', ['nms', 'roi_align'])
def test_wrong_ops(monkeypatch, op):
    import mmcv.ops

    correct = getattr(mmcv.ops, op)

    def wrong(*args):
        result = correct(*args)
        return (result[0], result[1] * 0) if op == 'nms' else result + 1

    monkeypatch.setattr(mmcv.ops, op, wrong)
    (problem,) = find_problems(doctor.check_ops)
    assert problem.fatal and 'wrong results on cpu' in problem.description


def test_missing_selective_search(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, 'ximgproc')
    (problem,) = find_problems(doctor.check_selective_search)
    assert not problem.fatal and problem.fix == doctor.REINSTALL_OPENCV


def test_versions_without_packages_distributions(monkeypatch):
    """Python 3.10 does not list distributions without top_level.txt."""
    described = [doctor.describe_version(name) for name in ('numpy', 'mmengine', 'torch')]
    monkeypatch.setattr(metadata, 'packages_distributions', dict)
    assert [doctor.describe_version(name) for name in ('numpy', 'mmengine', 'torch')] == described
    assert described[2] == torch.__version__ and doctor.describe_version('absent') == 'missing'


def test_conflicting_distributions(monkeypatch):
    versions = {'opencv-python': '4.1', 'opencv-contrib-python': '4.2', 'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, 'version', version)
    opencv, mmcv = find_problems(doctor.check_conflicts)
    assert opencv.description.startswith('opencv-contrib-python and opencv-python ')
    assert opencv.fix == doctor.REINSTALL_OPENCV
    assert mmcv.description.startswith('mmcv and onedl-mmcv ') and 'make env' in mmcv.fix
    assert not opencv.fatal and not mmcv.fatal


def test_broken_gpu_ops(monkeypatch):
    def no_gpu_kernel(*args, device=None, **kwargs):
        raise RuntimeError('nms is not compiled with GPU support')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    tensor = torch.tensor
    monkeypatch.setattr(torch, 'tensor', lambda *a, device: tensor(*a) if device == 'cpu' else no_gpu_kernel())
    on_cpu, on_gpu = doctor.check_ops()
    assert isinstance(on_cpu, str) and 'cpu' in on_cpu
    assert on_gpu.fatal and 'not compiled with GPU support' in on_gpu.description


def usage(free):
    return lambda path: SimpleNamespace(total=10**12, used=10**12 - free, free=free)


def test_small_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, 'disk_usage', usage(64 * 2**20))  # Docker's default
    (problem,) = find_problems(lambda: doctor.check_shared_memory(str(tmp_path)))
    assert not problem.fatal and '67 MB' in problem.description and '--shm-size' in problem.fix
    monkeypatch.setattr(doctor.shutil, 'disk_usage', usage(2**33))
    assert list(doctor.check_shared_memory(str(tmp_path))) == [f'8.6 GB free in {tmp_path}']
    assert not find_problems(lambda: doctor.check_shared_memory(str(tmp_path / 'absent')))


def test_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, 'disk_usage', usage(2 * 10**9))
    (problem,) = find_problems(lambda: doctor.check_disk(str(tmp_path)))
    assert not problem.fatal and f'{tmp_path} has only 2.0 GB' in problem.description
    monkeypatch.setattr(doctor.shutil, 'disk_usage', usage(10**10))
    assert not find_problems(doctor.check_disk)


def test_bare_import_of_torchvision(monkeypatch):
    def run(command, **options):
        assert command[1:] == ['-c', 'import torchvision']
        return subprocess.CompletedProcess(command, code, '', 'Traceback:\n  x\nRuntimeError: operator nms missing\n\n')

    monkeypatch.setattr(doctor.subprocess, 'run', run)
    code = 1
    (problem,) = find_problems(doctor.check_torchvision)
    assert not problem.fatal and '(RuntimeError: operator nms missing)' in problem.description
    code = 0
    assert not find_problems(doctor.check_torchvision)
