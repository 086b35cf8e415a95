import sys

import pytest

from ccop_mm.utils.commands import PROGRESS, run_command
from ccop_mm.utils.errors import InputError

SLEEP = 'import time; time.sleep(0.3); '


def run(tmp_path, code):
    return run_command('a title', [sys.executable, '-c', code], tmp_path / 'logs' / 'command.log', tmp_path)


def test_output_is_logged_and_duration_returned(tmp_path, capsys):
    code = SLEEP + "import os, sys; print(os.getcwd()); print('problem', file=sys.stderr)"
    seconds = run(tmp_path, code)
    assert 0.3 <= seconds < 60
    assert set((tmp_path / 'logs' / 'command.log').read_text().split()) == {str(tmp_path), 'problem'}
    lines = capsys.readouterr().out.split('\n')
    assert lines[1] == 'a title' and lines[2].startswith('  python -c ')


def test_tools_are_printed_relative_to_root(tmp_path, capsys):
    tool = tmp_path / 'tools' / 'empty.py'
    tool.parent.mkdir()
    tool.touch()
    run_command('title', [sys.executable, tool, 'my file'], tmp_path / 'log', tmp_path)
    assert capsys.readouterr().out.split('\n')[2] == "  python tools/empty.py 'my file'"


def test_failure_reports_log_and_last_lines(tmp_path):
    with pytest.raises(InputError, match='"a title" failed') as caught:
        run(tmp_path, "print(*(f'line{n:02}' for n in range(30)), sep='\\n'); exit(3)")
    message = str(caught.value)
    assert str(tmp_path / 'logs' / 'command.log') in message
    assert message.splitlines()[1:] == [f'line{n:02}' for n in range(10, 30)]


@pytest.mark.parametrize('name, default', [('OMP_WAIT_POLICY', 'passive'), ('GOMP_SPINCOUNT', '2000')])
def test_thread_settings_do_not_override_the_environment(tmp_path, monkeypatch, name, default):
    code = f'import os; print(os.environ[{name!r}])'
    log = tmp_path / 'logs' / 'command.log'
    monkeypatch.delenv(name, raising=False)
    run(tmp_path, code)
    assert log.read_text().strip() == default
    monkeypatch.setenv(name, 'mine')
    run(tmp_path, code)
    assert log.read_text().strip() == 'mine'


@pytest.mark.parametrize(
    'line, expected',
    [
        ('mmengine - INFO - Epoch(train)  [2][ 10/200]  lr: 1e-2  time: 0.5  loss: 7.25', ('2', '10', '200', '7.25')),
        ('mmengine - INFO - Epoch(val) [1][5/5]    coco/bbox_mAP: 0.1', ('1', '5', '5', None)),
        ('mmengine - INFO - Epoch(test) [ 50/100]    eta: 0:00:01', (None, '50', '100', None)),
    ],
)
def test_progress_of_epochs_is_parsed(line, expected):
    assert PROGRESS.search(line).groups() == expected
