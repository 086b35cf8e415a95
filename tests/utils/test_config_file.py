import pytest

from ccop_mm.utils.config_file import read_config, write_config
from ccop_mm.utils.errors import InputError


def test_config_inherits_from_base(tmp_path):
    (tmp_path / 'base.py').write_text('a = dict(b=1, c=2)')
    (tmp_path / 'mine.py').write_text("_base_ = ['base.py']\na = dict(b=3)")
    assert read_config(tmp_path / 'mine.py').a == dict(b=3, c=2)


def test_missing_config(tmp_path):
    with pytest.raises(InputError, match=r'absent\.py does not exist$'):
        read_config(tmp_path / 'absent.py')


@pytest.mark.parametrize('text', ['x = undefined', 'x = (', "_base_ = ['absent.py']", '_base_ = "no.py"', 'x = 1 / 0'])
def test_invalid_config(tmp_path, text):
    (tmp_path / 'invalid.py').write_text(text)
    with pytest.raises(InputError, match=r'invalid\.py .*: \w+Error') as caught:
        read_config(tmp_path / 'invalid.py')
    assert '\n' not in str(caught.value)


def test_written_config_overrides_base(tmp_path):
    base = tmp_path / 'base.py'
    base.write_text("a = dict(b=1, c=2)\nname = 'base'\nkept = 5")
    path = tmp_path / 'new' / 'mine.py'
    assert write_config(path, base, dict(a=dict(b=3), name="it's", steps=[1, 2])) == path
    cfg = read_config(path)
    assert cfg.to_dict() == dict(a=dict(b=3, c=2), name="it's", kept=5, steps=[1, 2])


def test_written_config_without_settings_equals_base(tmp_path):
    base = tmp_path / 'base.py'
    base.write_text('a = 1')
    assert read_config(write_config(tmp_path / 'mine.py', base, {})).to_dict() == dict(a=1)
