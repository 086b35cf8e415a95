"""Tables and files of a study."""

import json
import math

import pytest
from scipy import stats

from ccop_mm.label_efficiency.report import FinishedRun, StudyResult, format_report, write_report
from ccop_mm.label_efficiency.runs import Run
from ccop_mm.label_efficiency.search import ChosenRate
from ccop_mm.label_efficiency.splits import Share
from ccop_mm.label_efficiency.weights import InitialWeights

#: AP50 of each seed.
VALUES = {'random': {0: 0.10, 1: 0.16, 2: 0.13}, 'ccop': {0: 0.20, 1: 0.22, 2: 0.30}, 'moco': {0: 0.15, 2: 0.10}}
SETTINGS = dict(
    detector='fcos.py', num_train_images=100, num_selection_images=20, num_val_images=30, class_agnostic=True
)


def make_run(name, seed, is_final=True, factor=1.0):
    return Run(InitialWeights(name, 'random'), 10, factor, seed, 40, is_final)


def metrics(ap50):
    return dict(AP=ap50 / 2, AP50=ap50, AP75=ap50 / 4)


@pytest.fixture
def result():
    made = StudyResult(SETTINGS, list(VALUES), [Share(10, 10.0), Share(100, 100.0)], [0, 1, 2], 0.02)
    seconds = dict(training=1.0, test=1.0)
    for name, values in VALUES.items():
        made.finished.append(FinishedRun(make_run(name, 0, is_final=False), metrics(0.9), False, seconds))
        for seed, value in values.items():
            made.finished.append(FinishedRun(make_run(name, seed), metrics(value), value == 0.15, seconds))
    made.failed.append((make_run('moco', 1), 'runs/moco/log.txt'))
    made.chosen = {
        ('random', 10): ChosenRate(1.0, 'AP50', {0.3: 0.0, 1.0: 0.0}, 'highest'),
        ('ccop', 10): ChosenRate(0.3, 'AP50', {0.3: 0.2, 1.0: 0.1}, 'lowest'),
        ('moco', 10): ChosenRate(1.0, 'AP50', {0.3: 0.2, 1.0: 0.3, 3.0: 0.1}),
    }
    return made


def row(text, title, name):
    """Returns the cells of a row of the table with a title."""
    table = text.split(f'{title}\n\n')[1].split('\n\n')[0]
    (line,) = (line for line in table.splitlines() if line.startswith(f'| {name} '))
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def interval(values):
    """The 95 % interval of a mean, by scipy and by hand."""
    low, high = stats.t.interval(0.95, len(values) - 1, loc=0, scale=stats.sem(values))
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    quantiles = {2: 12.706, 3: 4.3027}
    assert high == pytest.approx(quantiles[len(values)] * deviation / math.sqrt(len(values)), rel=1e-4)
    return high


def test_means_and_differences(result):
    text = format_report(result)
    random = list(VALUES['random'].values())
    assert row(text, 'AP50 in %', 'random') == [f'13.0 ± {100 * interval(random):.1f}', '-']
    assert row(text, 'AP in %', 'random') == [f'6.5 ± {50 * interval(random):.1f}', '-']
    title = 'AP50: difference from random in percentage points, paired by seed'
    differences = [VALUES['ccop'][seed] - VALUES['random'][seed] for seed in range(3)]
    assert row(text, title, 'ccop') == [f'+11.0 ± {100 * interval(differences):.1f}', '-']
    differences = [0.05, -0.03]
    expected = f'+1.0 ± {100 * interval(differences):.1f} (2 of 3 seeds)'
    assert row(text, title, 'moco') == [expected, '-']
    assert '| random' not in text.split(title)[1].split('\n\n')[1]


def test_rates_and_notes(result):
    text = format_report(result)
    assert row(text, 'Learning rate', 'random') == ['0.02 (edge)', '-']
    assert row(text, 'Learning rate', 'ccop') == ['0.006 (edge)', '-']
    assert row(text, 'Learning rate', 'moco') == ['0.02', '-']
    assert 'random at 10 images' in text and 'runs/moco/log.txt' in text and '--extend' in text
    assert 'moco, 10 images, rate x 1, seed 0' in text.split('counts as an AP of 0')[1]


def test_single_seed_without_choice(result):
    result.seeds, result.failed = [0], []
    result.finished = [each for each in result.finished if each.run.seed == 0 and not each.diverged]
    result.chosen = {('random', 10): ChosenRate(1.0)}
    text = format_report(result)
    assert row(text, 'AP50 in %', 'random') == ['10.0', '-'] and '±' not in text.split('\n\n', 2)[2]
    assert 'edge' not in text and 'ailed' not in text


def test_files(result, tmp_path):
    write_report(result, tmp_path)
    assert (tmp_path / 'results.md').read_text() == f'{result}\n'
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['settings'] == SETTINGS and content['seeds'] == [0, 1, 2]
    finals = [run for run in content['runs'] if run['measured_on'] == 'val']
    assert {(run['weights'], run['seed']): run['metrics']['AP50'] for run in finals} == {
        (name, seed): value for name, values in VALUES.items() for seed, value in values.items()
    }
    rates = {entry['weights']: entry for entry in content['learning_rates']}
    assert rates['ccop']['learning_rate'] == pytest.approx(0.006) and rates['ccop']['values'] == {'0.3': 0.2, '1': 0.1}
    summary = {entry['weights']: entry for entry in content['summary']['AP50'] if entry['num_images'] == 10}
    assert summary['ccop']['difference_mean'] == pytest.approx(0.11)
    assert summary['random']['half_width'] == pytest.approx(interval(list(VALUES['random'].values())))
    assert content['failed'][0]['name'] == make_run('moco', 1).name
    assert {entry['mean'] for entry in content['summary']['AP'] if entry['num_images'] == 100} == {None}


def test_curves(result):
    assert result.curves('AP50') == {
        name: {10: [values[seed] for seed in sorted(values)], 100: []} for name, values in VALUES.items()
    }
