import importlib.util
from pathlib import Path

import pytest

from ccop_mm.evaluation import feature_maps

TOOLS = Path(__file__).resolve().parents[3] / 'tools' / 'analysis_tools'


@pytest.fixture
def probe_arguments():
    spec = importlib.util.spec_from_file_location('probe_arguments', TOOLS / 'probe_arguments.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_model_and_images(probe_arguments):
    images = ('--annotations', 'a.json', '--images', 'b')
    expected = dict(config='c.py', checkpoint=None, annotations='a.json', images='b', device='auto')
    parser = probe_arguments.probe_parser()
    assert vars(parser.parse_args(['c.py', *images])) == expected
    arguments = vars(parser.parse_args(['c.py', 'd.pth', *images, '--device', 'cuda']))
    assert arguments == {**expected, 'checkpoint': 'd.pth', 'device': 'cuda'}


@pytest.mark.parametrize(
    'missing, name', [('c.py', 'config'), ('--annotations', '--annotations'), ('--images', '--images')]
)
def test_required_arguments(probe_arguments, missing, name, capsys):
    words = ['c.py', '--annotations', 'a.json', '--images', 'b']
    position = words.index(missing)
    del words[position : position + 1 + missing.startswith('--')]
    with pytest.raises(SystemExit):
        probe_arguments.probe_parser().parse_args(words)
    assert name in capsys.readouterr().err.splitlines()[-1]


def test_choices_are_those_of_the_library(probe_arguments):
    assert probe_arguments.STAGES == feature_maps.STAGES
    assert probe_arguments.PYRAMID == feature_maps.PYRAMID
    assert set(probe_arguments.STAGES + probe_arguments.PYRAMID) == set(feature_maps.STRIDES)
