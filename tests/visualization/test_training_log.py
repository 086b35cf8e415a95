import json

import pytest

from ccop_mm.errors import InputError
from ccop_mm.visualization import read_training_log


def write(folder, name, rows):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_a_resumed_run_is_joined(tmp_path):
    write(tmp_path, '20260101_000000', [dict(step=n, loss=10.0 - n, epoch=1) for n in (1, 2, 3, 4)])
    write(tmp_path, '20260101_010000', [dict(step=3, loss=1.5), dict(step=3, rank_image=7.0), dict(step=5, loss=1.0)])
    log = read_training_log(tmp_path)
    assert [part.tolist() for part in log['loss']] == [[1, 2, 3, 5], [9, 8, 1.5, 1]]
    assert [part.tolist() for part in log['rank_image']] == [[3], [7]]
    assert log['epoch'][0].tolist() == [1, 2]


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match='holds no'):
        read_training_log(tmp_path)
    write(tmp_path, 'a', [])
    with pytest.raises(InputError, match='nothing has been logged yet'):
        read_training_log(tmp_path)
    (tmp_path / 'a' / 'vis_data' / 'scalars.json').write_text('{"step": 1')
    with pytest.raises(InputError, match='not a log'):
        read_training_log(tmp_path)
