import pytest
from matplotlib.figure import Figure
from PIL import Image

from ccop_mm.errors import InputError
from ccop_mm.visualization import save_figure


def figure():
    figure = Figure(figsize=(3, 2))
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([1, 3, 2])
    return figure


def test_png_has_the_size_asked_for(tmp_path):
    save_figure(figure(), tmp_path / 'deep' / 'a.png', dpi=50)
    assert Image.open(tmp_path / 'deep' / 'a.png').size == (150, 100)


@pytest.mark.parametrize('name', ['a.png', 'a.SVG'])
def test_same_figure_same_bytes(tmp_path, name):
    contents = []
    for _ in range(2):
        save_figure(figure(), tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].lstrip().startswith(b'\x89PNG' if name.endswith('png') else b'<?xml')


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match='a.gif: a figure is written as .png or .svg'):
        save_figure(figure(), tmp_path / 'a.gif')
    assert not any(tmp_path.iterdir())
