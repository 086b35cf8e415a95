import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.images import image_id_from_path

ROOT = Path(__file__).resolve().parents[3]

CONFIG = """
_base_ = [{base!r}]
train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0]['size'] = 96
train_dataloader = dict(
    dataset=dict(
        data_root={root!r}, ann_file='', data_prefix=dict(img_path='images/'), proposal_file='proposals.npz',
        pipeline=train_pipeline,
    )
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'images').mkdir()
    rng, entries = np.random.default_rng(0), []
    for number in range(2):
        name = f'{number}.jpg'
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
        entries.append((image_id_from_path(name), name, (90, 120), [[20, 20, 70, 60], [50, 30, 110, 80]]))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    path = tmp_path / 'my_ccop.py'
    path.write_text(CONFIG.format(base=str(ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py'), root=str(tmp_path)))
    return path


def run(*arguments):
    command = [sys.executable, ROOT / 'tools/misc/browse_views.py', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_config_that_inherits_from_a_shipped_config(config, tmp_path):
    done = run(config, '--out', tmp_path / 'views.png', '--num', 2, '--progress', 0)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cv2.imread(str(tmp_path / 'views.png')).shape[1] > 1000
    assert done.stdout.strip().endswith('views.png')


@pytest.mark.slow
def test_bad_input(config, tmp_path):
    done = run(config, '--out', tmp_path / 'views.png', '--index', 5)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and '[5]' in last
    assert not (tmp_path / 'views.png').exists()
