import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import save_figure


def figure():
    figure = Figure(figsize=(3, 2))
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([1, 3, 2])
    return figure


def test_png_has_the_requested_size(tmp_path):
    save_figure(figure(), tmp_path / 'deep' / 'a.png', dpi=50)
    assert Image.open(tmp_path / 'deep' / 'a.png').size == (150, 100)


@pytest.mark.parametrize('name', ['a.png', 'a.SVG'])
def test_equal_figures_give_identical_files(tmp_path, name):
    contents = []
    for _ in range(2):
        save_figure(figure(), tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].lstrip().startswith(b'\x89PNG' if name.endswith('png') else b'<?xml')


def test_png_keeps_all_colors(tmp_path):
    """An indexed PNG has at most 256 colors and posterizes images."""
    image = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    figure = Figure(figsize=(0.3, 0.2))
    figure.figimage(image)
    save_figure(figure, tmp_path / 'a.png', dpi=100)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'a.png').convert('RGB')), image)


def test_unsupported_suffix(tmp_path):
    with pytest.raises(InputError, match='a.gif'):
        save_figure(figure(), tmp_path / 'a.gif')
    assert not any(tmp_path.iterdir())
