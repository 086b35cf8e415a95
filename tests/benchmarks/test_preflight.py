from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def preflight(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import preflight

    return preflight


def test_random_json_is_valid_and_every_step_is_measured(preflight, tmp_path):
    path, folder = tmp_path / 'instances.json', tmp_path / 'images'
    preflight.write_json(path, num_images=60, num_boxes=900, num_points=5)
    folder.mkdir()
    for number in range(60):
        (folder / f'{number:012d}.jpg').touch()
    seconds = preflight.measure(path, folder)  # asserts that nothing is found
    assert 'convert to arrays' in seconds and 'read the json' in seconds
    assert len(seconds) == 6
    (folder / '000000000007.jpg').unlink()
    with pytest.raises(AssertionError, match='000000000007'):
        preflight.measure(path, folder)
