"""The command line that draws proposals."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'browse_proposals.py'


@pytest.fixture
def browse_tool(capsys):
    """``browse_tool(*arguments) -> (exit code, stdout, stderr)``."""
    spec = importlib.util.spec_from_file_location('browse_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        try:
            code = tool.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call


def test_photos_to_a_folder(browse_tool, tmp_path):
    (tmp_path / 'photos').mkdir()
    for name in 'abc':
        cv2.imwrite(str(tmp_path / 'photos' / f'{name}.png'), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / 'photos' / 'c.png').write_text('no photo any more')
    entries = [(i, f'{name}.png', (40, 60), [[5, 5, 35, 25]]) for i, name in enumerate('abc')]
    ProposalStore(entries).save(tmp_path / 'x.npz')
    arguments = (tmp_path / 'x.npz', '--images', tmp_path / 'photos', '--out', tmp_path / 'out')
    code, stdout, stderr = browse_tool(*arguments)
    assert (code, stdout) == (None, f'2 photos drawn: {tmp_path / "out"}\n')
    assert stderr.startswith('not drawn: c.png: ') and stderr.count('\n') == 1
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png.jpg', 'b.png.jpg']
    code, stdout, stderr = browse_tool(*arguments, '--num', 0)
    assert (code, stdout) == (2, '')
    assert stderr.startswith('error: at least 1 photo')
