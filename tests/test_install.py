"""requirements/install.sh with a stub of Python, the requirements files, and the wheel."""

import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MM_PACKAGES = {
    'onedl': {'onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection', 'mmcls', 'mmselfsup'},
    'openmmlab': {'mmcv', 'mmengine', 'mmdet', 'mmcls', 'mmselfsup'},
}
# "venv" creates an environment that only contains this stub, and "pip" logs its arguments. On pip call number $CALL the
# stub does what $TODO states: it kills install.sh or fails. TODO=fail_doctor makes the doctor fail. $TORCH is what the
# stub reports about torch. The mmcv that it installs has GPU ops; with OPS=cpu_wheel only if it is compiled, and never
# with OPS=cpu.
STUB = """#!/bin/sh
case "$2" in
  *describe_torch\\(*) echo "${TORCH:-2.13.0+cpu none none none}" ;;
  venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  pip)
    if [ "$3" = cache ]; then echo /cache; exit; fi
    echo "$@" >> "$LOG"
    echo "$CPLUS_INCLUDE_PATH" > "$LOG.include"
    if [ "$(wc -l < "$LOG")" = "$CALL" ]; then
      case "$TODO" in kill) kill -9 $PPID ;; fail) exit 1 ;; esac
    fi
    case "$*" in *mmcv)
      ops="${0%/bin/python}/lib/python3.12/site-packages/mmcv"
      mkdir -p "$ops"
      case "$OPS $*" in
        "cpu_wheel "*--no-binary* | " "*) echo libcudart ;;
        *) echo libc ;;
      esac > "$ops/_ext.so" ;;
    esac ;;
  ccop_mm.doctor) [ "$TODO" != fail_doctor ] ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """Copies the files that install.sh reads to a temporary folder, together with stubs of Python and nvidia-smi."""
    root = tmp_path / 'tree'
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    shutil.copy(ROOT / 'setup.py', root)
    stub = root / 'python-stub'
    stub.write_text(STUB)
    stub.chmod(0o755)
    (root / 'bin').mkdir()
    simulate_gpu(root, visible=False)
    return root


def simulate_gpu(tree, visible):
    """Creates an nvidia-smi that lists a GPU, or fails."""
    command = tree / 'bin' / 'nvidia-smi'
    command.write_text(f'#!/bin/sh\n[ "$1" = -L ] && {str(visible).lower()}\n')
    command.chmod(0o755)


def install(tree, venv='venv', stack='onedl', python='./python-stub', wheels='', todo='', call=0, **environment):
    """Runs install.sh; returns exit code, output, and the arguments of each pip call."""
    log = tree / 'pip.log'
    log.write_text('')
    inherited = {name: value for name, value in os.environ.items() if 'CUDA' not in name}
    done = subprocess.run(
        ['bash', 'requirements/install.sh', venv, stack, python, wheels],
        cwd=tree,
        env={
            **inherited,
            'PATH': f'{tree / "bin"}{os.pathsep}{os.environ["PATH"]}',
            'LOG': str(log),
            'TODO': todo,
            'CALL': str(call),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()


def test_order(tree):
    code, output, calls = install(tree)
    assert code == 0 and 'ready after' in output
    torch, third, ops, mm, itself, opencv = calls[1:]
    assert '--requirement requirements/torch.txt' in torch
    assert 'requirements/runtime.txt' in third
    assert ops.endswith('--no-build-isolation --no-deps onedl-mmcv')
    assert mm.endswith('--no-deps onedl-mmengine onedl-mmdetection imaug mmcls mmselfsup')
    assert itself.endswith('--no-build-isolation --no-deps --editable .')
    assert opencv.endswith('--no-deps opencv-contrib-python')
    assert all('--constraint requirements/onedl.txt' in call for call in calls)
    assert install(tree) == (0, '', [])


def test_wheelhouse_is_used_in_every_step(tree):
    (tree / 'my wheels').mkdir()
    code, _, calls = install(tree, wheels='my wheels')
    assert code == 0 and all('--find-links my wheels' in call for call in calls)


def test_killed_installation_is_recreated(tree):
    code, _, calls = install(tree, todo='kill', call=4)
    assert code == -9 and len(calls) == 4
    (tree / 'venv' / 'half-installed').touch()
    code, output, calls = install(tree)
    assert code == 0 and 'venv is incomplete' in output and len(calls) == 7
    assert not (tree / 'venv' / 'half-installed').exists()


def test_installation_continues_after_a_failure_of_pip(tree):
    code, output, calls = install(tree, todo='fail', call=4)
    assert code == 1 and len(calls) == 4 and output.splitlines()[-1].startswith('install: step 4 failed')
    code, output, calls = install(tree)
    assert code == 0 and 'incomplete' not in output and len(calls) == 4


def test_unusable_environment_is_not_ready(tree):
    code, output, _ = install(tree, todo='fail_doctor')
    assert code == 1 and 'not usable' in output
    code, output, calls = install(tree)
    assert code == 0 and 'ready after' in output and calls == []


def test_changed_requirements_run_all_steps_again(tree):
    install(tree)
    (tree / 'venv' / 'kept').touch()
    with (tree / 'requirements' / 'runtime.txt').open('a') as file:
        file.write('another-package\n')
    code, _, calls = install(tree)
    assert code == 0 and len(calls) == 7 and (tree / 'venv' / 'kept').exists()


def test_broken_environment_is_recreated(tree):
    install(tree)
    (tree / 'venv' / 'bin' / 'python').unlink()
    code, output, calls = install(tree)
    assert code == 0 and 'venv is incomplete' in output and len(calls) == 7


def test_one_installation_at_a_time(tree):
    if shutil.which('flock') is None:
        pytest.skip('needs the command flock')
    with (tree / 'requirements' / 'install.sh').open() as script:
        fcntl.flock(script, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            ['bash', 'requirements/install.sh', 'venv', 'onedl', './python-stub'],
            cwd=tree,
            env={**os.environ, 'LOG': str(tree / 'pip.log'), 'CALL': '0', 'TODO': ''},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert 'waiting' in waiting.stdout.readline()
        assert not (tree / 'venv').exists()
        fcntl.flock(script, fcntl.LOCK_UN)
        assert 'ready after' in waiting.communicate(timeout=60)[0] and waiting.returncode == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'stack': 'torchhub'}, 'STACK=torchhub'),
        ({'wheels': 'absent'}, 'WHEELS=absent'),
        ({'python': '/nonexistent'}, 'PYTHON=/nonexistent'),
        ({'python': '/bin/false'}, 'PYTHON=/bin/false'),
        ({'venv': ''}, 'usage: '),
        ({'venv': 'requirements'}, 'VENV=requirements'),
    ],
)
def test_invalid_arguments_are_an_error_of_one_line(tree, arguments, message):
    before = sorted(tree.rglob('*'))
    code, output, calls = install(tree, **arguments)
    assert code == 1 and calls == [] and message in output
    assert output.startswith('install: ') and output.count('\n') <= 1 + ('requirements' in arguments.values())
    assert sorted(path for path in tree.rglob('*') if path.name != 'pip.log') == before


def test_environment_of_the_other_stack_is_not_changed(tree):
    install(tree, stack='openmmlab')
    code, output, calls = install(tree, stack='onedl')
    assert code == 1 and calls == [] and 'openmmlab' in output and 'STACK=onedl' in output
    assert install(tree, stack='openmmlab') == (0, '', [])


CUDA_TORCH = '2.13.0+cu130 13.0'


@pytest.fixture
def toolkit(tmp_path):
    """Creates a CUDA toolkit of one command and one header."""

    def create(release='13.0', header='include/cusparse.h'):
        home = tmp_path / f'cuda-{release}'
        (home / 'bin').mkdir(parents=True)
        nvcc = home / 'bin' / 'nvcc'
        nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.88"\n')
        nvcc.chmod(0o755)
        if header:
            (home / header).parent.mkdir(parents=True)
            (home / header).touch()
        return str(home)

    return create


def messages(output):
    """Returns the lines of the output that do not report a step."""
    return [line for line in output.splitlines() if not re.match(r'install: (\[\d/7\]|installing|ready)', line)]


def test_gpu_ops_have_their_own_cache(tree, toolkit):
    home = toolkit()
    code, output, calls = install(tree, TORCH=f'{CUDA_TORCH} 9.0 none', CUDA_HOME=home)
    assert code == 0 and len(calls) == 7 and messages(output) == []
    assert [call for call in calls if '--cache-dir' in call] == [calls[3]]
    assert calls[3].endswith('--no-deps --cache-dir /cache/ccop_mm-ops-2.13.0_cu130-9.0 onedl-mmcv')
    options = {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '8.0;9.0+PTX', 'TORCH': f'{CUDA_TORCH} none none'}
    code, output, calls = install(tree, venv='other', CUDA_HOME=home, **options)
    assert code == 0 and messages(output) == []
    assert '--cache-dir /cache/ccop_mm-ops-2.13.0_cu130-8.0_9.0_PTX ' in calls[3]


@pytest.mark.parametrize('torch', ['2.13.0+cpu none', CUDA_TORCH])
def test_ops_for_the_cpu_are_announced_if_torch_supports_gpus(tree, torch):
    code, output, calls = install(tree, TORCH=f'{torch} none none', OPS='cpu')
    assert code == 0 and len(calls) == 7 and not any('--cache-dir' in call for call in calls)
    announced = messages(output)
    assert len(announced) == (torch == CUDA_TORCH) and all('FORCE_CUDA=1' in line for line in announced)


@pytest.mark.parametrize('stack', MM_PACKAGES)
def test_wheel_for_the_cpu_is_replaced_on_a_gpu_node(tree, toolkit, stack):
    ops = 'onedl-mmcv' if stack == 'onedl' else 'mmcv'
    (tree / 'wheels').mkdir()
    (tree / 'wheels' / f'{ops.replace("-", "_")}-2-cp312-cp312-linux_x86_64.whl').touch()
    options = {'stack': stack, 'wheels': 'wheels', 'TORCH': f'{CUDA_TORCH} 9.0 none', 'CUDA_HOME': toolkit()}
    code, output, calls = install(tree, OPS='cpu_wheel', **options)
    assert code == 0 and len(calls) == 8
    assert f'--force-reinstall --no-binary {ops} ' in calls[4] and calls[4].endswith(f' {ops}')
    (message,) = messages(output)
    assert 'CPU only' in message and '9.0' in message


def test_wheel_for_the_cpu_cannot_be_replaced_without_a_toolkit(tree):
    (tree / 'wheels').mkdir()
    (tree / 'wheels' / 'onedl_mmcv-2.3.6-cp312-cp312-linux_x86_64.whl').touch()
    options = {'wheels': 'wheels', 'TORCH': f'{CUDA_TORCH} 9.0 none', 'CUDA_HOME': '/nonexistent'}
    code, output, calls = install(tree, OPS='cpu_wheel', **options)
    assert code == 1 and len(calls) == 4
    announced, error = messages(output)
    assert 'CPU only' in announced and '/nonexistent/bin/nvcc' in error


def test_compiled_gpu_ops_need_no_toolkit(tree, toolkit):
    options = {'TORCH': f'{CUDA_TORCH} 9.0 none'}
    assert install(tree, todo='fail', call=5, CUDA_HOME=toolkit(), **options)[0] == 1
    code, output, calls = install(tree, CUDA_HOME='/nonexistent', **options)
    assert code == 0 and len(calls) == 3 and messages(output) == []


def test_environment_of_a_login_node_gets_gpu_ops_on_a_gpu_node(tree, toolkit):
    assert install(tree, TORCH=f'{CUDA_TORCH} none none', OPS='cpu', todo='fail', call=6)[0] == 1
    code, _, calls = install(tree, TORCH=f'{CUDA_TORCH} 8.6 none', OPS='cpu_wheel', CUDA_HOME=toolkit())
    assert code == 0 and len(calls) == 3 and '--no-binary onedl-mmcv' in calls[0]


def test_finished_environment_of_a_login_node_gets_gpu_ops(tree, toolkit):
    """Once, where a GPU becomes visible, or with FORCE_CUDA=1."""
    home = toolkit()
    assert install(tree, TORCH=f'{CUDA_TORCH} none none', OPS='cpu')[0] == 0
    assert install(tree) == (0, '', [])
    simulate_gpu(tree, visible=True)
    code, _, calls = install(tree, TORCH=f'{CUDA_TORCH} 9.0 none', OPS='cpu_wheel', CUDA_HOME=home)
    assert code == 0 and len(calls) == 1 and '--no-binary onedl-mmcv' in calls[0]
    assert install(tree) == (0, '', [])
    simulate_gpu(tree, visible=False)
    assert install(tree) == (0, '', [])  # on the login node again

    assert install(tree, venv='other', TORCH=f'{CUDA_TORCH} none none', OPS='cpu')[0] == 0
    options = {'venv': 'other', 'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '9.0', 'CUDA_HOME': home}
    code, _, calls = install(tree, TORCH=f'{CUDA_TORCH} none none', OPS='cpu_wheel', **options)
    assert code == 0 and len(calls) == 1 and '--no-binary onedl-mmcv' in calls[0]
    assert install(tree, **options) == (0, '', [])


def test_gpu_that_torch_cannot_use_is_reported_once(tree):
    simulate_gpu(tree, visible=True)
    assert install(tree, OPS='cpu', TORCH=f'{CUDA_TORCH} none none')[0] == 0
    assert install(tree) == (0, '', [])


def test_ops_that_stay_without_cuda_are_an_error(tree, toolkit):
    code, output, calls = install(tree, TORCH=f'{CUDA_TORCH} 9.0 none', OPS='cpu', CUDA_HOME=toolkit())
    assert code == 1 and len(calls) == 5 and 'MMCV_WITH_OPS' in messages(output)[-1]


def test_wheel_of_gpu_ops_needs_no_toolkit(tree):
    (tree / 'wheels').mkdir()
    (tree / 'wheels' / 'onedl_mmcv-2.3.6-cp312-cp312-linux_x86_64.whl').touch()
    options = {'wheels': 'wheels', 'CUDA_HOME': '/nonexistent'}
    code, output, calls = install(tree, TORCH=f'{CUDA_TORCH} 9.0 none', **options)
    assert code == 0 and len(calls) == 7 and messages(output) == []
    code, _, calls = install(tree, venv='other', FORCE_CUDA='1', TORCH=f'{CUDA_TORCH} none none', **options)
    assert code == 0 and len(calls) == 7


@pytest.mark.parametrize(
    ('torch', 'release', 'environment', 'expected'),
    [
        (f'{CUDA_TORCH} none none', '13.0', {'FORCE_CUDA': '1'}, ['FORCE_CUDA=1', "TORCH_CUDA_ARCH_LIST='8.0;9.0'"]),
        (f'{CUDA_TORCH} none none', '13.0', {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': 'native'}, ["='8.0;9.0'"]),
        ('2.13.0+cpu none none none', '13.0', {'FORCE_CUDA': '1'}, ['FORCE_CUDA=1', '2.13.0+cpu']),
        (f'{CUDA_TORCH} 9.0 none', None, {}, ['/nonexistent/bin/nvcc', 'CUDA 13 ', 'CUDA_HOME']),
        (
            f'{CUDA_TORCH} none none',
            None,
            {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '9.0'},
            ['/nonexistent/bin/nvcc', 'CUDA 13 '],
        ),
        (f'{CUDA_TORCH} 9.0 none', '12.4', {}, ['CUDA 12.4', 'CUDA 13.0', 'CUDA_HOME']),
        (f'{CUDA_TORCH} 7.0;9.0 7.0', '13.0', {}, ['2.13.0+cu130', 'capability 7.0;', 'CUDA_VISIBLE_DEVICES']),
        ('none', '13.0', {}, ["venv/bin/python -c 'import torch'"]),
    ],
)
def test_impossible_compilation_is_an_error_of_one_line(tree, toolkit, torch, release, environment, expected):
    home = toolkit(release) if release else '/nonexistent'
    code, output, calls = install(tree, TORCH=torch, CUDA_HOME=home, **environment)
    assert code == 1 and len(calls) == 3  # torch is installed, nothing is compiled
    (message,) = messages(output)
    assert all(part in message for part in expected), message
    # The same command resumes once the cause is fixed.
    fixed = {'TORCH': f'{CUDA_TORCH} 9.0 none', 'CUDA_HOME': home if release == '13.0' else toolkit('13.1')}
    code, _, calls = install(tree, **fixed)
    assert code == 0 and len(calls) == 4 and calls[0].endswith('onedl-mmcv')


def test_missing_headers_are_those_of_torch(tree, toolkit):
    options = {'TORCH': f'{CUDA_TORCH} 9.0 none', 'CUDA_HOME': toolkit(header=None)}
    code, output, calls = install(tree, **options)
    assert code == 1 and len(calls) == 3 and 'cusparse.h' in messages(output)[0]
    folders = [tree / f'venv/lib/python3.12/site-packages/nvidia/{name}/include' for name in ('cu13', 'cudnn')]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / 'cusparse.h').touch()
    code, output, calls = install(tree, CPLUS_INCLUDE_PATH='/own', **options)
    assert code == 0 and len(calls) == 4
    (message,) = messages(output)
    assert 'cusparse.h' in message
    assert (tree / 'pip.log.include').read_text().strip() == f'/own:{folders[0]}:{folders[1]}'


@pytest.mark.parametrize('header', ['include/cusparse.h', 'targets/x86_64-linux/include/cusparse.h'])
def test_complete_toolkit_on_the_path(tree, toolkit, header):
    path = f'{toolkit(header=header)}/bin{os.pathsep}{os.environ["PATH"]}'
    code, output, _ = install(tree, TORCH=f'{CUDA_TORCH} 9.0 none', PATH=path)
    assert code == 0 and messages(output) == []
    assert (tree / 'pip.log.include').read_text() == '\n'


def test_torch_is_described_before_mmcv_is_installed():
    script = (ROOT / 'requirements' / 'install.sh').read_text()
    (code,) = re.findall(r"^describe_torch='(.+)'$", script, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, '-c', f"import sys; sys.modules['mmcv'] = None; {code}"],
        cwd=ROOT,
        env={**os.environ, 'CCOP_MM_LAZY': '1'},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split()[:2] == [importlib.metadata.version('torch'), torch_cuda_version()]
    assert len(done.stdout.split()) == 4


def torch_cuda_version():
    import torch

    return torch.version.cuda or 'none'


def read_pins(name):
    """Reads a requirements file as {package: version specifier}."""
    lines = [line.split('#')[0].strip() for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()]
    return {match[1]: match[2] for match in (re.match(r'([\w-]+)(.*)', line) for line in lines if line)}


@pytest.mark.parametrize('stack', MM_PACKAGES)
def test_stacks_pin_the_mm_packages(stack):
    pins = read_pins(stack)
    assert all(pins[name].startswith('==') for name in MM_PACKAGES[stack])
    assert 'opencv-contrib-python' in pins and 'opencv-python' not in pins
    shared = {*read_pins('runtime'), *read_pins('tests'), *read_pins('torch')}
    assert not shared & set().union(*MM_PACKAGES.values()) and not any(name.startswith('opencv') for name in shared)


def test_wheel(tmp_path):
    # Built from a copy, so that build/ and the links of an editable install are not changed.
    tree = tmp_path / 'tree'
    tree.mkdir()
    for name in ('ccop_mm', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, tree)
    links = tree / 'ccop_mm' / '.mim'
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir()
    (links / 'configs').symlink_to('../../configs')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(tmp_path), '.'],
        cwd=tree,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert (links / 'configs').is_symlink()
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(next(name for name in names if name.endswith('/entry_points.txt'))).decode()
        metadata = HeaderParser().parsestr(
            archive.read(next(name for name in names if name.endswith('/METADATA'))).decode()
        )
    for folder in ('configs', 'tools'):
        files = [path for path in (tree / folder).rglob('*') if path.is_file()]
        assert {f'ccop_mm/.mim/{path.relative_to(tree)}' for path in files} <= names
    assert 'ccop_mm/.mim/model-index.yml' in names
    assert 'ccop_mm/compat/__init__.py' in names and not any(name.startswith('tests') for name in names)
    required = {re.match(r'[\w.-]+', line)[0] for line in metadata.get_all('Requires-Dist')}
    assert {'torch', 'torchvision', 'pycocotools', 'mmcls', 'mmselfsup'} <= required
    assert re.search(r'^ccop-mm ?= ?ccop_mm\.cli:main$', scripts, re.MULTILINE)
    assert not any(
        name.startswith(('mmcv', 'mmdet', 'mmengine', 'onedl', 'opencv', 'scikit-image')) for name in required
    )
