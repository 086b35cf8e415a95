"""requirements/install.sh with a stub of Python, the requirements files, and the wheel."""

import fcntl
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
# stub does what $TODO states: it kills install.sh or fails. TODO=fail_doctor makes the doctor fail.
STUB = """#!/bin/sh
case "$2" in
  venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  pip)
    echo "$@" >> "$LOG"
    if [ "$(wc -l < "$LOG")" = "$CALL" ]; then
      case "$TODO" in kill) kill -9 $PPID ;; fail) exit 1 ;; esac
    fi ;;
  ccop_mm.doctor) [ "$TODO" != fail_doctor ] ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """Copies the files that install.sh reads to a temporary folder, together with the stub of Python."""
    root = tmp_path / 'tree'
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    shutil.copy(ROOT / 'setup.py', root)
    stub = root / 'python-stub'
    stub.write_text(STUB)
    stub.chmod(0o755)
    return root


def install(tree, venv='venv', stack='onedl', python='./python-stub', wheels='', todo='', call=0):
    """Runs install.sh; returns exit code, output, and the arguments of each pip call."""
    log = tree / 'pip.log'
    log.write_text('')
    done = subprocess.run(
        ['bash', 'requirements/install.sh', venv, stack, python, wheels],
        cwd=tree,
        env={**os.environ, 'LOG': str(log), 'TODO': todo, 'CALL': str(call)},
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
    assert {'torch', 'torchvision', 'pycocotools'} <= required
    assert re.search(r'^ccop-mm ?= ?ccop_mm\.cli:main$', scripts, re.MULTILINE)
    assert not any(name.startswith(('mm', 'onedl', 'opencv', 'scikit-image')) for name in required)
