import json
import os

import pytest

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.train_log import read_log_entries, read_scalars, read_training_log


def write(work_dir, name, rows):
    path = work_dir / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def test_log_of_resumed_run_is_joined(tmp_path):
    write(tmp_path, '20260101_000000', [dict(step=n, loss=10.0 - n, epoch=1) for n in (1, 2, 3, 4)])
    write(tmp_path, '20260101_010000', [dict(step=3, loss=1.5), dict(step=3, rank_image=7.0), dict(step=5, loss=1.0)])
    log = read_training_log(tmp_path)
    assert [part.tolist() for part in log['loss']] == [[1, 2, 3, 5], [9, 8, 1.5, 1]]
    assert [part.tolist() for part in log['rank_image']] == [[3], [7]]
    assert log['epoch'][0].tolist() == [1, 2]


def test_missing_empty_and_invalid_logs(tmp_path):
    with pytest.raises(InputError, match=rf'{tmp_path}: .*scalars\.json'):
        read_training_log(tmp_path)
    path = write(tmp_path, 'a', [])
    with pytest.raises(InputError, match=f'{tmp_path}: .*empty'):
        read_training_log(tmp_path)
    for reader in (read_training_log, read_log_entries, read_scalars):
        path.write_text('{"step": 1\n{"step": 2, "loss": 1.0}\n')
        with pytest.raises(InputError, match=rf'{path}: .*line 1 '):
            reader(tmp_path)
        with pytest.raises(InputError, match=rf'{tmp_path}/absent: .*scalars\.json'):
            reader(tmp_path / 'absent')


def test_incomplete_last_line_of_a_killed_run_is_skipped(tmp_path):
    path = write(tmp_path, 'a', rows := [dict(step=1, loss=2.0), dict(step=2, loss=1.0)])
    with path.open('a') as file:
        file.write('{"step": 3, "lo')
    assert read_log_entries(tmp_path) == read_scalars(tmp_path) == rows
    assert [part.tolist() for part in read_training_log(tmp_path)['loss']] == [[1, 2], [2, 1]]


def test_scalars_are_those_of_the_most_recent_start(tmp_path):
    old, new = [dict(step=1, loss=2.0)], [dict(step=1, loss=1.0), dict(step=2, loss=0.5, time=0.1)]
    # The name, which is the start time, decides, not the modification time, which copying changes.
    for name, rows, time in (('20260101_000000', old, 2000), ('20260101_010000', new, 1000)):
        path = write(tmp_path, name, rows)
        os.utime(path, (time, time))
    assert read_scalars(tmp_path) == new
    assert read_log_entries(tmp_path) == old + new
