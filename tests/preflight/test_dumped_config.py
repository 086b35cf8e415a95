"""Configs in checkpoints are read as data and never executed."""

import copy
import math

import numpy as np
import pytest
from mmengine.config import Config
from small_transfer import CONFIGS, read_config
from torch import nn

from ccop_mm.preflight.dumped_config import UNSET, Expression, differences, format_value, parse_config, plain_config

VALUES = dict(
    texts=['a', 'it\'s "quoted"', 'two\nlines', ''],
    numbers=(1, -2, 1e-05, -1.5, math.inf, -math.inf, True, None),
    numpy=[np.float64(0.25), np.int64(3)],
    nested=dict(type='Conv2d', sizes=[(1, 2), [3]], empty=dict(), inner=[dict(a=1), dict()]),
    keys={'an-odd.key': 1, 'b': dict(c=(1,))},
    listed=[{'an odd key': 1}, {2: 'number'}],
)


@pytest.mark.parametrize('formatted', [True, False])
def test_dump_is_parsed_to_the_same_data(formatted):
    cfg = Config(VALUES, format_python_code=formatted)
    parsed = parse_config(cfg.pretty_text)
    assert parsed == plain_config(cfg.to_dict())
    assert parsed['numbers'] == [1, -2, 1e-05, -1.5, math.inf, -math.inf, True, None]
    assert parsed['numpy'] == [0.25, 3] and parsed['texts'] == VALUES['texts']
    assert parsed['keys'] == {'an-odd.key': 1, 'b': dict(c=[1])} and parsed['listed'][1] == {2: 'number'}


def test_classes_and_nan_compare_by_name():
    cfg = Config(dict(act=dict(type=nn.GELU), cast=int, missing=math.nan), format_python_code=False)
    parsed = parse_config(cfg.pretty_text)
    assert parsed == plain_config(cfg.to_dict())
    assert parsed['cast'] == Expression('int') and 'GELU' in repr(parsed['act']['type'])
    assert parsed['missing'] == Expression('nan')


@pytest.mark.parametrize(
    'path',
    [path for kind in ('*/*.py', '*/*/*.py') for path in sorted(CONFIGS.glob(kind)) if path.parent.name != '_base_'],
    ids=lambda path: path.stem,
)
def test_dump_of_every_config_is_parsed(path):
    cfg = Config(read_config(path).to_dict(), format_python_code=False)
    assert parse_config(cfg.pretty_text) == plain_config(cfg.to_dict())


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        'a = 1\nprint(a)',
        'a = (',
        'a.b = 1',
        'a = {[]: 1}',
        'a = \0',
        'a = ' + '(' * 5000 + ')' * 5000,
        'def f(): pass',
        None,
        b'a = 1',
    ],
    ids=lambda text: repr(text)[:20],
)
def test_other_texts_are_no_configs(text):
    assert parse_config(text) is None


@pytest.mark.parametrize(
    'code',
    [
        'open({marker!r}, "w")',
        '[open({marker!r}, "w")]',
        'dict(a=open({marker!r}, "w"))',
        'dict(**open({marker!r}, "w"))',
        'dict([open({marker!r}, "w")])',
        '-open({marker!r}, "w")',
        'f"{{open({marker!r}, chr(119))}}"',
        '{{**open({marker!r}, "w")}}',
        '{{open({marker!r}, "w"): 1}}',
        '[open({marker!r}, "w") for _ in (1,)]',
        '(lambda: open({marker!r}, "w"))()',
        '1 + open({marker!r}, "w")',
    ],
)
def test_code_is_not_executed(tmp_path, code):
    marker = tmp_path / 'marker'
    parsed = parse_config(f'value = {code.format(marker=str(marker))}')
    assert 'open' in str(parsed['value'])
    assert not marker.exists()


def test_differences_have_the_paths_of_cfg_options():
    old = dict(
        a=dict(type='A', x=1, y=[1, 2], gone=5, none=None), steps=[dict(type='S', k=1), dict(type='T')], same=(1,)
    )
    new = copy.deepcopy(old)
    new['a'].update(x=2, y=[1, 2, 3], added='z', absent=None)
    del new['a']['gone'], new['a']['none']
    new['steps'][0]['k'] = 7
    new['steps'][1] = dict(type='U', many=1, other=2)
    assert list(differences(plain_config(old), plain_config(new))) == [
        ('a.added', UNSET, 'z'),
        ('a.gone', 5, UNSET),
        ('a.x', 1, 2),
        ('a.y', [1, 2], [1, 2, 3]),
        ('steps.0.k', 1, 7),
        ('steps.1.type', 'T', 'U'),
    ]


def test_values_are_formatted_on_one_short_line():
    assert format_value([dict(type='Load'), dict(type='Pack')]) == '[Load, Pack]'
    assert format_value(UNSET) == 'not set' and format_value('a\nb') == r"'a\nb'"
    assert len(format_value(list(range(1000)))) == 60
