import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def proposals(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import proposals

    return proposals


def test_default_images(proposals):
    pytest.importorskip('skimage')
    images = proposals.read_images(None, limit=2)
    assert len(images) == 2 and all(image.ndim == 3 and image.shape[2] == 3 for image in images)


def test_folder_without_images_is_reported(proposals, tmp_path, capsys):
    with pytest.raises(SystemExit):
        proposals.main([str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


def test_json_output(proposals, tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    monkeypatch.setattr(proposals, 'read_images', lambda folder, limit: [image, image])
    monkeypatch.setattr(proposals, 'peak_in_fresh_process', lambda *args: 10.0)
    monkeypatch.setattr(proposals, 'MEGAPIXELS', (0.001, 0.002))
    proposals.main(['images', '--mode', 'single', '--json', str(tmp_path / 'results.json')])
    results = json.loads((tmp_path / 'results.json').read_text())
    sizes = [
        f'{name}_{size}mpx'
        for size in ('0.001', '0.002')
        for name in ('native_cpu', 'opencv_cpu', 'opencv_over_native', 'native_peak_mib', 'opencv_peak_mib')
    ]
    summary = [
        'photos',
        'native_cpu_median',
        'opencv_cpu_median',
        'opencv_over_native_cpu_median',
    ]
    assert set(results) == {*summary, 'opencv_over_native_cpu_min', 'min_common_boxes', *sizes}
    assert results['photos'] == 2 and results['min_common_boxes'] == 1.0
