import pytest

from ccop_mm.config_file import read_config
from ccop_mm.errors import InputError


def test_a_config_with_its_base(tmp_path):
    (tmp_path / 'base.py').write_text('a = dict(b=1, c=2)')
    (tmp_path / 'mine.py').write_text("_base_ = ['base.py']\na = dict(b=3)")
    assert read_config(tmp_path / 'mine.py').a == dict(b=3, c=2)


def test_an_absent_config_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r'^no config file .*absent\.py$'):
        read_config(tmp_path / 'absent.py')


@pytest.mark.parametrize('slip', ['x = undefined', 'x = (', "_base_ = ['absent.py']", '_base_ = "no.py"', 'x = 1 / 0'])
def test_a_slip_in_a_config_is_one_line(tmp_path, slip):
    (tmp_path / 'slip.py').write_text(slip)
    with pytest.raises(InputError, match=r'slip\.py cannot be read as a config: \w+Error') as caught:
        read_config(tmp_path / 'slip.py')
    assert '\n' not in str(caught.value)
