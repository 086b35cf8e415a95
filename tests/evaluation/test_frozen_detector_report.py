import json

import pytest

from ccop_mm.evaluation.frozen_detector_report import (
    FrozenDetectorResult,
    format_difference,
    format_frozen_detector_report,
    mean_interval,
    merge_results,
    read_report,
    write_report,
)
from ccop_mm.utils.errors import InputError

SETTINGS = dict(levels=['C3', 'C4', 'C5'], num_train_images=40, num_images=10, size=64)


def make_result(seeds, objects, classes=None):
    """Result whose AP50 and AP75 are AP plus and minus a tenth."""
    by_task = {'objects': objects, **({'classes': classes} if classes else {})}
    return FrozenDetectorResult(
        settings=dict(SETTINGS),
        seeds=list(seeds),
        metrics={
            task: dict(AP=values, AP50=[v + 0.1 for v in values], AP75=[v - 0.1 for v in values])
            for task, values in by_task.items()
        },
        detections={task: [[dict(image_id=seed)] for seed in seeds] for task in by_task},
        seconds=dict(features=1.0, heads=2.0),
    )


def test_interval_by_students_t():
    mean, half = mean_interval([0.1, 0.2, 0.6])
    # Standard deviation 0.264575, divided by the square root of 3, times the 97.5 % point of t with 2 degrees: 4.302653
    assert mean == pytest.approx(0.3) and half == pytest.approx(4.302653 * 0.2645751 / 3**0.5, rel=1e-6)
    assert mean_interval([0.25]) == (0.25, None)
    assert mean_interval([0.25, 0.25]) == (0.25, 0)


def test_table_of_one_and_of_several_seeds():
    lines = format_frozen_detector_report(make_result([0], [0.2], [0.15])).splitlines()
    assert 'C3, C4, C5' in lines[0] and '10 images' in lines[0] and '40' in lines[0] and 'seeds' not in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ['AP', 'AP50', 'AP75'],
        ['objects', '20.0', '30.0', '10.0'],
        ['classes', '15.0', '25.0', '5.0'],
    ]
    lines = format_frozen_detector_report(make_result([0, 4, 7], [0.1, 0.2, 0.6])).splitlines()
    assert '3 seeds' in lines[0]
    assert lines[2].split() == ['objects', '30.0', '±', '65.7', '40.0', '±', '65.7', '20.0', '±', '65.7']
    assert len({len(line) for line in lines[1:]}) == 1


def test_merged_results():
    merged = merge_results([make_result([0], [0.2], [0.15]), make_result([3, 4], [0.3, 0.4], [0.1, 0.2])])
    assert merged.seeds == [0, 3, 4]
    assert merged.metrics['objects']['AP'] == [0.2, 0.3, 0.4] and merged.metrics['classes']['AP'] == [0.15, 0.1, 0.2]
    assert merged.detections['classes'] == [[dict(image_id=seed)] for seed in (0, 3, 4)]
    assert merged.seconds == dict(features=2, heads=4) and merged.settings == SETTINGS


def test_differences_are_paired_by_seed(tmp_path):
    write_report(make_result([1, 0, 5], [0.1, 0.3, 0.9], [0.1, 0.1, 0.1]), tmp_path / 'other.json')
    other = read_report(tmp_path / 'other.json')
    lines = format_difference(make_result([0, 1], [0.35, 0.17]), other).splitlines()
    # 0.35 - 0.3 and 0.17 - 0.1; t of 1 degree is 12.7062
    half = 12.7062 * 1 / 2
    assert [line.split() for line in lines] == [['objects', *['+6.0', '±', f'{2 * half:.1f}'] * 3]]
    assert format_difference(make_result([5], [0.95]), other).split() == ['objects', '+5.0', '+5.0', '+5.0']


def test_files(tmp_path):
    result = make_result([0, 1], [0.1, 0.2])
    write_report(result, tmp_path / 'a.json')
    report = json.loads((tmp_path / 'a.json').read_text())
    assert report == read_report(tmp_path / 'a.json')
    assert report['metrics'] == result.metrics and report['seeds'] == [0, 1] and report['settings'] == SETTINGS
    assert 'detections' not in report


@pytest.mark.parametrize(
    'content',
    [
        '{}',
        '[]',
        '{"seeds": [0], "settings": {}, "metrics": []}',
        '{"seeds": [0], "settings": {}, "metrics": {"objects": {"AP": [0.1], "AP50": [0.1]}}}',
        '{"seeds": [0, 1], "settings": {}, "metrics": {"objects": {"AP": [0.1], "AP50": [0.1], "AP75": [0.1]}}}',
        '{"seeds": [0], "settings": {}, "metrics": {"objects": {"AP": 1, "AP50": [0.1], "AP75": [0.1]}}}',
        '{"seeds": [0], "settings": {}, "metrics": {"objects": {"AP": ["a"], "AP50": [0.1], "AP75": [0.1]}}}',
    ],
)
def test_invalid_files(tmp_path, content):
    (tmp_path / 'bad.json').write_text(content)
    with pytest.raises(InputError, match=r'bad\.json'):
        read_report(tmp_path / 'bad.json')
    with pytest.raises(InputError, match=r'absent\.json'):
        read_report(tmp_path / 'absent.json')


def test_results_that_cannot_be_compared(tmp_path):
    write_report(make_result([0], [0.2]), tmp_path / 'a.json')
    other = read_report(tmp_path / 'a.json')
    for setting, value in (('num_images', 11), ('num_train_images', 4), ('size', 32)):
        result = make_result([0], [0.2])
        result.settings[setting] = value
        with pytest.raises(InputError, match=f'{setting} {SETTINGS[setting]}, this one {value}'):
            format_difference(result, other)
    with pytest.raises(InputError, match='seed'):
        format_difference(make_result([1], [0.2]), other)
    with pytest.raises(InputError, match='task'):
        format_difference(make_result([0], [0.2]), {**other, 'metrics': {'classes': other['metrics']['objects']}})
