import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ccop_mm.proposals.store import ProposalStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def clock():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    try:
        import study_clock

        yield study_clock
    finally:
        sys.path.remove(str(ROOT / 'benchmarks'))


@pytest.mark.parametrize('speed', [1, 3])
def test_a_machine_that_slows_down_does_not_change_the_ratio(clock, tmp_path, monkeypatch, speed):
    calls = []

    class Planted:
        def __init__(self, config, name, work_dir):
            self.cost = float(config)

        def step(self):
            calls.append(self.cost)
            # Two rounds to begin with, two, and the machine slows down between the two steps of the one after.
            return self.cost * (1 if len(calls) <= 9 else speed) + (100 if len(calls) <= 4 else 0)

    monkeypatch.setattr(clock, 'Training', Planted)
    monkeypatch.setattr(clock, 'keep_freed_memory', lambda: None)  # it would hold for all tests after this one
    clock.main(['0.75', '0.5', '--rounds', '5', '--json', str(tmp_path / 'clock.json')])
    found = json.loads((tmp_path / 'clock.json').read_text())
    assert found['ratio'] == pytest.approx(1.5)
    assert len(found['seconds']) == len(found['other_seconds']) == 5
    assert max(found['seconds']) < 100, 'the first steps are not counted'
    assert calls == [0.75, 0.5] * 7


def test_a_config_that_is_not_there_is_named(clock, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        clock.main([str(tmp_path / 'absent.py'), 'other.py', '--json', str(tmp_path / 'clock.json')])
    assert ended.value.code not in (0, None)
    assert f'no config file {tmp_path / "absent.py"}' in f'{ended.value.code}{capsys.readouterr().err}'
    assert not (tmp_path / 'clock.json').exists()


def test_steps_are_those_of_a_training(clock, tmp_path):
    listed, proposals, rng = [], [], np.random.default_rng(0)
    for number in range(5):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (90, 90, 3), dtype=np.uint8))
        listed.append(dict(id=number, file_name=name))
        proposals.append((number, name, (90, 90), [[5, 5, 40, 40], [45, 45, 85, 85]]))
    (tmp_path / 'photos.json').write_text(json.dumps(dict(images=listed)))
    ProposalStore(proposals).save(tmp_path / 'proposals.npz')
    config = tmp_path / 'small.py'
    config.write_text(
        f"_base_ = ['{ROOT / 'benchmarks' / 'study' / 'ccop_small.py'}']\n"
        "model = dict(queue_len='auto')\n"
        f"train_dataloader = dict(batch_size=2, dataset=dict(data_root='{tmp_path}', ann_file='photos.json', "
        "data_prefix=dict(img_path=''), proposal_file='proposals.npz'))\n"
    )
    training = clock.Training(str(config), 'one', str(tmp_path / 'work'))
    before = training._model.backbone.conv1.weight.clone()
    assert all(training.step() > 0 for _ in range(4)), 'more than the two steps of an epoch'
    assert not torch.equal(training._model.backbone.conv1.weight, before)
    assert training._model.encoder_k.steps == 4
    assert training._model.box_jitter.zeta == pytest.approx(0.65), 'the middle of 0.3 and 1.0'
