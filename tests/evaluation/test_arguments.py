import argparse

import pytest

from ccop_mm.evaluation.arguments import add_probe_arguments


def parse(*words):
    parser = argparse.ArgumentParser()
    add_probe_arguments(parser)
    return vars(parser.parse_args(words))


def test_a_model_and_photos():
    photos = ('--annotations', 'a.json', '--images', 'b')
    expected = dict(config='c.py', checkpoint=None, annotations='a.json', images='b', device='cpu')
    assert parse('c.py', *photos) == expected
    assert parse('c.py', 'd.pth', *photos, '--device', 'cuda') == {**expected, 'checkpoint': 'd.pth', 'device': 'cuda'}


@pytest.mark.parametrize('left_out', ['c.py', '--annotations', '--images'])
def test_what_is_needed(left_out, capsys):
    words = ['c.py', '--annotations', 'a.json', '--images', 'b']
    at = words.index(left_out)
    del words[at : at + 1 + left_out.startswith('--')]
    with pytest.raises(SystemExit):
        parse(*words)
    assert left_out.removesuffix('c.py') in capsys.readouterr().err
