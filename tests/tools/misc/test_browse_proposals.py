from functools import partial

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore


@pytest.fixture
def browse_tool(call_tool):
    """Runs the tool: ``browse_tool(*arguments) -> (exit code, stdout, stderr)``."""
    return partial(call_tool, 'misc/browse_proposals.py')


def test_images_are_written_to_a_directory(browse_tool, tmp_path):
    (tmp_path / 'images').mkdir()
    for name in 'abc':
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / 'images' / 'c.png').write_text('not an image')
    entries = [(i, f'{name}.png', (40, 60), [[5, 5, 35, 25]]) for i, name in enumerate('abc')]
    ProposalStore(entries).save(tmp_path / 'x.npz')
    arguments = (tmp_path / 'x.npz', '--images', tmp_path / 'images', '--out', tmp_path / 'out')
    code, stdout, stderr = browse_tool(*arguments)
    assert code == 0 and stdout.startswith('2 ') and str(tmp_path / 'out') in stdout
    assert 'c.png' in stderr and stderr.count('\n') == 1
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png.jpg', 'b.png.jpg']
    code, stdout, stderr = browse_tool(*arguments, '--num', 0)
    assert (code, stdout) == (2, '')
    assert stderr.startswith('error: ') and 'got 0' in stderr and stderr.count('\n') == 1
