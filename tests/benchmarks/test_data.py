import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import data

    return data


def test_json_output(data, tmp_path, monkeypatch):
    times = {
        'mmselfsup': [12.0, 10.0, 11.0],
        'mmselfsup, full': [14.0, 12.0, 13.0],
        'per image': [12.0, 10.0, 11.0],
        'loader': [3.0, 5.0, 2.75],
        'full CPU': [7.0, 6.0, 6.5],
        'floor': [2.0, 2.0, 2.0],
    }
    monkeypatch.setattr(data, 'measure', lambda folder, rounds: times)
    data.main(['--data', 'images', '--json', str(tmp_path / 'results.json')])
    assert json.loads((tmp_path / 'results.json').read_text()) == {
        'loader_over_mmselfsup': 4.0,  # the median of 4, 2 and 4
        'full_cpu_over_mmselfsup': 2.0,
        'per_image_over_mmselfsup': 1.0,
        'loader_over_floor': 1.5,
        'mmselfsup_ms': 11.0,
        'mmselfsup_full_ms': 13.0,
        'per_image_ms': 11.0,
        'loader_ms': 3.0,
        'full_cpu_ms': 6.5,
        'floor_ms': 2.0,
    }


def test_missing_folder_is_reported(data, capsys):
    with pytest.raises(SystemExit):
        data.main([])
    assert '--data' in capsys.readouterr().err
