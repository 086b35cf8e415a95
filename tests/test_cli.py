"""The console command ``ccop-mm``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ccop_mm import cli
from ccop_mm.utils.commands import console_command

ROOT = Path(__file__).resolve().parents[1]
#: What the console script of the wheel contains.
SCRIPT = 'import sys; from ccop_mm.cli import main; sys.exit(main())\n'


@pytest.fixture
def program(tmp_path):
    """A console script, with tools/ where setup.py puts them, also if the package was not installed with pip."""
    script = tmp_path / 'bin' / 'ccop-mm'
    script.parent.mkdir()
    script.write_text(f'#!{sys.executable}\n{SCRIPT}')
    script.chmod(0o755)
    package = tmp_path / 'site' / 'ccop_mm'
    package.mkdir(parents=True)
    for path in (ROOT / 'ccop_mm').iterdir():
        if path.name not in ('.mim', '__pycache__'):
            (package / path.name).symlink_to(path)
    (package / 'cli.py').unlink()
    (package / 'cli.py').write_text((ROOT / 'ccop_mm' / 'cli.py').read_text())  # it locates tools/ by its own path
    (package / '.mim').mkdir()
    (package / '.mim' / 'tools').symlink_to(ROOT / 'tools')
    return script


def run(program, *arguments, **options):
    environment = {**os.environ, 'PYTHONPATH': str(program.parents[1] / 'site')}
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=120, **options
    )


def test_every_tool_has_a_command_with_a_description():
    tools = {
        path.relative_to(ROOT / 'tools').as_posix()
        for path in (ROOT / 'tools').rglob('*')
        if path.suffix == '.sh' or (path.suffix == '.py' and "__name__ == '__main__'" in path.read_text())
    }
    assert sorted(cli.COMMANDS.values()) == sorted(tools)
    descriptions = [cli.describe(ROOT / 'tools' / file) for file in cli.COMMANDS.values()]
    assert all(re.fullmatch(r'[A-Z].{10,130}', text) for text in descriptions), descriptions
    assert not any(text.startswith('Usage') for text in descriptions)


@pytest.mark.parametrize('arguments', [(), ('--help',)])
def test_commands_are_listed_without_heavy_imports(program, arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', program, *arguments],
        env={**os.environ, 'PYTHONPATH': str(program.parents[1] / 'site')},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith('  ')}
    assert listed == {*cli.COMMANDS, 'doctor'}
    imported = set(re.findall(r'\| +(\w+)', done.stderr))
    assert 'ccop_mm' in imported and not imported & {'torch', 'mmengine', 'numpy'}


def test_version(program):
    from ccop_mm.version import __version__

    assert run(program, '--version').stdout.strip() == __version__


def test_unknown_command_is_one_line(program):
    done = run(program, 'trian', 'config.py')
    assert done.returncode == 2 and done.stdout == ''
    assert re.fullmatch(r"error: .*'trian'.*\btrain\b.*\n", done.stderr)


def test_package_without_tools_is_one_line(program):
    tools = program.parents[1] / 'site/ccop_mm/.mim/tools'
    tools.unlink()
    done = run(program, '--help')
    assert done.returncode == 2 and re.fullmatch(rf'error: {tools} .*\n', done.stderr)


def test_options_and_exit_codes_are_those_of_the_tool(program, tmp_path):
    done = run(program, 'coco-subset', '--help')
    assert done.returncode == 0 and 'coco_subset.py' in done.stdout
    done = run(program, 'coco-subset', str(tmp_path / 'absent.json'), '--out', str(tmp_path / 'o'))
    assert done.returncode == 2 and 'absent.json' in done.stderr and 'Traceback' not in done.stderr
    assert run(program, 'dist-train').returncode == 2


def test_doctor_is_a_module():
    assert cli.command_line('doctor', []) == [sys.executable, '-m', 'ccop_mm.doctor']


def test_commands_that_messages_name(monkeypatch):
    from ccop_mm.utils.commands import tool_command

    installed = '/env/lib/python3.12/site-packages/ccop_mm/.mim/tools/pretrain.py'
    assert console_command(installed) == ['ccop-mm', 'pretrain']
    assert console_command('my/tools/train.py') == ['python', 'my/tools/train.py']
    for script, train, distributed in (
        (installed, ['ccop-mm', 'train'], ['ccop-mm', 'dist-train']),
        ('tools/pretrain.py', ['python', 'tools/train.py'], ['tools/dist_train.sh']),
    ):
        monkeypatch.setattr(sys, 'argv', [script])
        assert tool_command('train.py') == train and train[-1].removesuffix('.py').endswith('train')
        assert tool_command('dist_train.sh') == distributed
    assert cli.COMMANDS['dist-train'] == 'dist_train.sh' and cli.COMMANDS['train'] == 'train.py'
