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


ARCHITECTURES = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120', 'compute_120']  # torch 2.13 for CUDA 13.0
NAMES = {(6, 0): 'Tesla P100', (7, 0): 'Tesla V100', (8, 0): 'NVIDIA A100', (9, 0): 'NVIDIA H100', (13, 0): 'Future'}


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """Simulates a CUDA build of torch, its GPUs, the CUDA version of mmcv's ops, and what NVIDIA's driver reports."""

    def simulate(*capabilities, version='13.0', ops='13.0', smi=None, error=None, architectures=ARCHITECTURES):
        import mmcv.ops

        def run(command, **options):
            assert command[0] == 'nvidia-smi'
            if smi is None:
                raise FileNotFoundError(command[0])
            return subprocess.CompletedProcess(command, 0 if smi else 9, smi, '')

        def init():
            raise error

        monkeypatch.setattr(torch, '__version__', '2.13.0+cu130' if version else '2.13.0+cpu')
        monkeypatch.setattr(torch.version, 'cuda', version)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index=0: capabilities[index])
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index=0: NAMES[capabilities[index]])
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: list(architectures) if capabilities else [])
        monkeypatch.setattr(torch.cuda, 'init', init)
        monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: ops)
        monkeypatch.setattr(doctor.subprocess, 'run', run)
        monkeypatch.setattr(doctor, 'DRIVER_FOLDER', str(tmp_path))
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    return simulate


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes the tensors that check_ops creates for the GPU raise an error, or lie on the CPU."""

    def simulate(error=None):
        def create(original):
            def call(*args, device, **options):
                if device == 'cuda' and error:
                    raise error
                return original(*args, **options)

            return call

        for name in ('tensor', 'zeros', 'arange'):
            monkeypatch.setattr(torch, name, create(getattr(torch, name)))

    return simulate


def test_gpu_ops_work(cuda, on_gpu):
    cuda((9, 0))
    on_gpu()
    assert list(doctor.check_ops()) == ['RoIAlign and nms work on cpu', 'RoIAlign and nms work on cuda']
    assert list(doctor.check_cuda()) == ['1 x NVIDIA H100, CUDA 13.0; SyncBN available']


@pytest.mark.parametrize(
    'error',
    [
        RuntimeError('nms is not compiled with GPU support'),
        RuntimeError('CUDA error: no kernel image is available for execution on the device\nCompile with ...'),
    ],
)
def test_broken_gpu_ops(cuda, on_gpu, error):
    cuda((9, 0), (8, 0), (9, 0))  # the ops may be built for other GPUs
    on_gpu(error)
    on_cpu, problem = doctor.check_ops()
    assert isinstance(on_cpu, str) and 'cpu' in on_cpu
    assert problem.fatal and str(error).splitlines()[0] in problem.description
    assert problem.fix.startswith("FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='8.0;9.0' pip install ")
    assert not find_problems(doctor.check_cuda)


def test_ops_for_the_cpu_on_a_gpu_node(cuda, on_gpu):
    cuda((8, 0), ops='not available')
    on_gpu(AssertionError('not to be called'))
    on_cpu, problem = doctor.check_ops()
    assert isinstance(on_cpu, str) and problem.fatal and 'CPU only' in problem.description
    assert problem.fix.startswith("FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='8.0' pip install ")
    assert '--no-cache-dir' in problem.fix and 'nvcc of CUDA 13' in problem.fix


@pytest.mark.parametrize(
    ('version', 'ops', 'warned'), [('13.0', 'not available', 1), ('13.0', '13.0', 0), (None, 'not available', 0)]
)
def test_ops_for_the_cpu_without_a_gpu(cuda, version, ops, warned):
    cuda(version=version, ops=ops)
    problems = find_problems(doctor.check_ops)
    assert len(problems) == warned
    for problem in problems:
        assert not problem.fatal and not problem.cpu_only and '2.13.0+cu130' in problem.description
        assert 'FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=' in problem.fix and '--no-cache-dir' in problem.fix


def test_ops_are_compiled_for_the_cpu_where_no_gpu_is_visible(cuda, monkeypatch):
    """A machine without a CUDA toolkit may have a CUDA build of torch, as PyPI's is one."""
    import mmcv.ops

    cuda()
    monkeypatch.setattr(mmcv.ops, 'nms', lambda *args: 1 / 0)
    (problem,) = find_problems(doctor.check_ops)
    assert problem.fix.startswith('pip install ') and 'nvcc' not in problem.fix


OLD_DRIVER = (
    'The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading '
    'and installing a new version from the URL: ...'
)


@pytest.mark.parametrize(
    ('version', 'error', 'reason', 'fix'),
    [
        ('13.0', RuntimeError(OLD_DRIVER), 'too old (found version 12040) (torch 2.13.0+cu130, CUDA 13.0)', '580'),
        ('12.6', RuntimeError(OLD_DRIVER), 'too old (found version 12040)', '525'),
        ('13.0', RuntimeError('Found no NVIDIA driver on your system. Please ...'), 'no NVIDIA driver', '--gpus all'),
        ('13.0', RuntimeError('Error 803: system has unsupported driver'), 'Error 803', 'nvidia-smi'),
        (None, None, '2.13.0+cpu is built without CUDA', 'VENV='),
    ],
)
@pytest.mark.parametrize('smi', ['NVIDIA A100, 40GB, 550.54.15\nTesla T4, 550.54.15\n', None, ''])
def test_gpu_that_torch_cannot_use(cuda, tmp_path, version, error, reason, fix, smi):
    cuda(version=version, error=error, smi=smi)
    if not smi:
        assert not find_problems(doctor.check_cuda)
        (tmp_path / 'gpus' / '0000:01:00.0').mkdir(parents=True)
    (problem,) = find_problems(doctor.check_cuda)
    assert not problem.fatal and problem.cpu_only
    assert ('NVIDIA A100, 40GB, driver 550.54.15' if smi else str(tmp_path)) in problem.description
    assert reason in problem.description and fix in problem.fix and 'Please' not in problem.description


def test_report_of_a_gpu_that_torch_cannot_use(cuda, monkeypatch, capsys):
    cuda(smi='NVIDIA A100, 550.54.15', error=RuntimeError(OLD_DRIVER))
    monkeypatch.setattr(doctor, 'CHECKS', (('mmcv ops', doctor.check_ops), ('GPU', doctor.check_cuda)))
    assert doctor.main() == 0
    *_, warning, last = capsys.readouterr().out.splitlines()
    assert warning.startswith('WARNING: ') and '550.54.15' in warning and 'on the CPU' in last
    broken = doctor.Problem('torch is missing', 'install it')
    monkeypatch.setattr(doctor, 'CHECKS', (('imports', lambda: [broken]), ('GPU', doctor.check_cuda)))
    assert doctor.main() == 1
    assert capsys.readouterr().out.endswith('pre-training cannot run here\n')


@pytest.mark.parametrize('hidden', ['', '-1'])
def test_hidden_gpu_is_no_problem(cuda, monkeypatch, hidden):
    cuda(smi='NVIDIA A100, 550.54.15', error=RuntimeError('No CUDA GPUs are available'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    (result,) = doctor.check_cuda()
    assert isinstance(result, str) and f'CUDA_VISIBLE_DEVICES={hidden}:' in result
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    assert len(find_problems(doctor.check_cuda)) == 1


@pytest.mark.parametrize('capability', [(6, 0), (7, 0)])
def test_gpu_without_kernels_in_this_torch(cuda, on_gpu, capability):
    cuda(capability)
    on_gpu(AssertionError('not to be called'))
    assert list(doctor.check_ops()) == ['RoIAlign and nms work on cpu']  # rebuilding the ops would not help
    (problem,) = find_problems(doctor.check_cuda)
    assert problem.fatal and NAMES[capability] in problem.description and 'sm_75' in problem.description
    assert 'CUDA 12.6' in problem.fix and '--force-reinstall' not in problem.fix and '=0' not in problem.fix
    text = '.'.join(map(str, capability))
    assert doctor.describe_torch() == ('2.13.0+cu130', '13.0', text, text)


def test_some_gpus_without_kernels(cuda):
    cuda((9, 0), (7, 0), (9, 0), (6, 0))
    (problem,) = find_problems(doctor.check_cuda)
    assert not problem.fatal and 'CUDA_VISIBLE_DEVICES=0,2,' in problem.fix
    assert doctor.describe_torch()[2:] == ('6.0;7.0;9.0', '6.0;7.0')


@pytest.mark.parametrize(
    ('capability', 'architectures', 'supported'),
    [
        ((8, 9), ['sm_80'], True),
        ((8, 0), ['sm_86'], False),
        ((9, 0), ['sm_80', 'sm_86'], False),
        ((9, 0), ['compute_80'], True),
        ((8, 0), ['compute_90'], False),
        ((9, 0), ['sm_90a'], True),
        ((10, 3), ['sm_100'], True),
        ((13, 0), ARCHITECTURES, True),
        ((13, 0), ARCHITECTURES[:-1], False),
    ],
)
def test_kernels_that_a_gpu_can_run(cuda, capability, architectures, supported):
    cuda(capability, architectures=architectures)
    assert doctor.list_unsupported_gpus() == ([] if supported else [0])


def test_broken_torch_is_described(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert doctor.describe_torch() == ('none', 'none', 'none', 'none')
    (problem,) = find_problems(doctor.check_cuda)
    assert problem.fatal and problem.fix == doctor.MAKE_ENV


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
