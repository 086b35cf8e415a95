"""tools/analysis_tools/label_efficiency.py: arguments and exit codes. tests/label_efficiency/ runs the studies."""

import pytest
from label_efficiency_data import study_data  # noqa: F401  fixture

from ccop_mm import apis
from ccop_mm.label_efficiency import StudyResult

TOOL = 'analysis_tools/label_efficiency.py'
DEFAULTS = dict(
    shares=[10, 100],
    num_images=[],
    seeds=[0, 1, 2],
    lr_factors=[0.3, 1, 3],
    extend=False,
    class_agnostic=False,
    iterations=[],
    annotations=None,
    images=None,
    val_annotations=None,
    val_images=None,
    jobs=1,
    dry_run=False,
    options={},
)


@pytest.fixture
def calls(monkeypatch):
    """Arguments of the calls of ``apis.label_efficiency``, and the result that it returns."""
    received = []
    result = StudyResult({}, ['random'], [], [0], 0.01, lines=['the tables'])

    def record(*args, **kwargs):
        received.append((args, kwargs))
        return result

    monkeypatch.setattr(apis, 'label_efficiency', record)
    return received, result


def test_arguments_are_passed_on(call_tool, calls):
    received, _ = calls
    code, out, _ = call_tool(TOOL, 'detector.py', '--weights', 'random', 'a=b.pth', '--out', 'out')
    assert code == 0 and out.startswith('the tables\n') and 'out/results.png' in out
    assert received.pop() == (('detector.py', ['random', 'a=b.pth'], 'out'), DEFAULTS)
    options = [
        '--num-images',
        5,
        10,
        '--seeds',
        4,
        '--lr-factors',
        1,
        '--extend',
        '--class-agnostic',
        '--iterations',
        7,
    ]
    files = ['--annotations', 'a', '--images', 'b', '--val-annotations', 'c', '--val-images', 'd']
    more = ['--jobs', 2, '--dry-run', '--cfg-options', 'train_dataloader.batch_size=8']
    code, out, _ = call_tool(TOOL, 'detector.py', '--weights', 'random', '--out', 'out', *options, *files, *more)
    assert code == 0 and 'results.png' not in out
    expected = dict(num_images=[5, 10], seeds=[4], lr_factors=[1], extend=True, class_agnostic=True, iterations=[7])
    expected.update(annotations='a', images='b', val_annotations='c', val_images='d', jobs=2, dry_run=True)
    assert received.pop()[1] == {**DEFAULTS, **expected, 'options': {'train_dataloader.batch_size': 8}}


def test_failed_runs_give_an_exit_code(call_tool, calls):
    calls[1].failed.append(('run', 'log.txt'))
    assert call_tool(TOOL, 'detector.py', '--weights', 'random', '--out', 'out')[0] == 1


@pytest.mark.parametrize(
    'arguments',
    [
        ('--weights', 'random', '--out', 'out'),
        ('detector.py', '--out', 'out'),
        ('detector.py', '--weights', 'random'),
        ('detector.py', '--weights', 'random', '--out', 'out', '--shares', 1, '--num-images', 2),
        ('detector.py', '--weights', 'random', '--out', 'out', '--cfg-options', 'model.backbone=dict(depth=18)'),
    ],
)
def test_invalid_command_lines(arguments, call_tool, calls):
    code, _, err = call_tool(TOOL, *arguments)
    assert code == 2 and 'usage: ' in err and calls[0] == []


def test_interruption(call_tool, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(apis, 'label_efficiency', interrupt)
    code, out, err = call_tool(TOOL, 'detector.py', '--weights', 'random', '--out', 'out')
    assert (code, out) == (130, '') and 'repeat' in err


def test_error_in_one_line(call_tool, study_data, tmp_path):  # noqa: F811
    out = tmp_path / 'out'
    code, _, err = call_tool(TOOL, study_data / 'detector.py', '--weights', 'a=absent.pth', '--out', out)
    assert code == 2 and err.startswith('error: ') and 'absent.pth' in err and err.count('\n') == 1
    assert not out.exists()
