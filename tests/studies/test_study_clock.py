import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ccop_mm.proposals.store import ProposalStore

STUDIES = Path(__file__).resolve().parents[2] / 'studies'


@pytest.fixture(scope='module')
def clock():
    sys.path.insert(0, str(STUDIES))
    try:
        import study_clock

        yield study_clock
    finally:
        sys.path.remove(str(STUDIES))


@pytest.mark.parametrize('slowdown', [1, 3])
def test_ratio_is_unchanged_when_the_machine_slows_down(clock, tmp_path, monkeypatch, slowdown):
    calls = []

    class FakeTraining:
        def __init__(self, config, name, work_dir):
            self.duration = float(config)

        def step(self):
            calls.append(self.duration)
            # The slowdown starts after the 9th call, so in the middle of the third measured pair.
            return self.duration * (1 if len(calls) <= 9 else slowdown) + (100 if len(calls) <= 4 else 0)

    monkeypatch.setattr(clock, 'Training', FakeTraining)
    monkeypatch.setattr(clock, 'keep_freed_memory', lambda: None)  # would affect all later tests
    clock.main(['0.75', '0.5', '--rounds', '5', '--json', str(tmp_path / 'clock.json')])
    result = json.loads((tmp_path / 'clock.json').read_text())
    assert result['ratio'] == pytest.approx(1.5)
    assert len(result['seconds']) == len(result['other_seconds']) == 5
    assert max(result['seconds'] + result['other_seconds']) < 100, 'warm-up steps are not counted'
    assert calls == [0.75, 0.5] * 7


def test_missing_config_is_reported(clock, tmp_path, capsys):
    missing = tmp_path / 'absent.py'
    with pytest.raises(SystemExit) as exit_info:
        clock.main([str(missing), 'other.py', '--json', str(tmp_path / 'clock.json')])
    assert exit_info.value.code not in (0, None)
    assert str(missing) in f'{exit_info.value.code}{capsys.readouterr().err}'
    assert not (tmp_path / 'clock.json').exists()


def test_steps_train_the_model(clock, tmp_path):
    images, proposals, rng = [], [], np.random.default_rng(0)
    for number in range(5):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (90, 90, 3), dtype=np.uint8))
        images.append(dict(id=number, file_name=name))
        proposals.append((number, name, (90, 90), [[5, 5, 40, 40], [45, 45, 85, 85]]))
    (tmp_path / 'images.json').write_text(json.dumps(dict(images=images)))
    ProposalStore(proposals).save(tmp_path / 'proposals.npz')
    config = tmp_path / 'small.py'
    config.write_text(
        f"_base_ = ['{STUDIES / 'configs' / 'ccop_small.py'}']\n"
        "model = dict(queue_len='auto')\n"
        f"train_dataloader = dict(batch_size=2, dataset=dict(data_root='{tmp_path}', ann_file='images.json', "
        "data_prefix=dict(img_path=''), proposal_file='proposals.npz'))\n"
    )
    training = clock.Training(str(config), 'test_steps_train_the_model', str(tmp_path / 'work'))
    before = training._model.backbone.conv1.weight.clone()
    durations = [training.step() for _ in range(4)]  # an epoch has two steps
    assert all(0 < duration < 300 for duration in durations)
    assert not torch.equal(training._model.backbone.conv1.weight, before)
    assert training._model.encoder_k.steps == 4
    assert training._model.box_jitter.zeta == pytest.approx(0.65), 'halfway between 0.3 and 1.0'
