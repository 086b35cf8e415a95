import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ccop_mm.engine import checkpoint_hook
from ccop_mm.engine.checkpoint_hook import find_newest, read_meta
from ccop_mm.errors import InputError

SCRIPT = Path(__file__).with_name('killed_in_save.py')


def test_a_kill_at_any_step_of_a_save_leaves_a_checkpoint_that_resumes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), 'SafeCheckpointHook'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    whole = lines.pop()['whole']
    kills, resumed = [line['before'] for line in lines[::2]], lines[1::2]
    # Write and rename the checkpoint, write and rename the pointer, delete. The last comes after the save.
    assert kills == ['open', 'os.chmod', 'os.rename'] * 2 + ['os.remove', 'open']
    assert [line['left'] for line in resumed] == [[1]] * 3 + [[1, 2]] * 4 + [[2]]
    assert [line['temporary'] for line in resumed] == [0, 1, 1] * 2 + [0, 0]
    assert [line['resumed_from'] for line in resumed] == ['epoch_1.pth'] * 6 + ['epoch_2.pth'] * 2
    for line in resumed:
        assert line['weight'] == whole
        assert line['files'] == ['epoch_3.pth', 'last_checkpoint']


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean())


class Validate(Hook):
    """Gives scores as a validation after each epoch would."""

    def before_train_epoch(self, runner):
        if runner.epoch > 0:
            score = [0, 1, 3, 2, 4][runner.epoch]
            (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
            hook.after_val_epoch(runner, dict(acc=float(score), loss=float(score)))


def train(work_dir, name, by_epoch=True, **arguments):
    torch.manual_seed(0)
    runner = Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader([dict(inputs=torch.ones(1))] * 4, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type=name, by_epoch=by_epoch, **arguments)),
        custom_hooks=[Validate()],
        log_level='ERROR',
        experiment_name=f'{work_dir}',
        default_scope='mmselfsup',
    )
    runner.train()
    return runner


def weights(folder):
    return {path.name: torch.load(path, weights_only=True)['state_dict'] for path in sorted(folder.rglob('*.pth'))}


@pytest.mark.parametrize(
    'arguments',
    [
        dict(interval=1),
        dict(interval=2, max_keep_ckpts=1),
        dict(interval=2, max_keep_ckpts=2, save_last=False),
        dict(by_epoch=False, interval=3, max_keep_ckpts=2, save_begin=2),
        dict(interval=1, max_keep_ckpts=1, save_best='acc', published_keys=['meta', 'state_dict']),
        dict(interval=2, max_keep_ckpts=1, save_best=['acc', 'loss']),
        dict(interval=2, save_best='auto', out_dir=''),
        dict(interval=1, max_keep_ckpts=2, save_best='acc', file_client_args=dict(backend='disk')),
    ],
    ids=str,
)
def test_keeps_what_mmengines_hook_keeps(tmp_path, arguments):
    if 'out_dir' in arguments:
        arguments = dict(arguments, out_dir=str(tmp_path / 'elsewhere'))
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    train(ours, 'SafeCheckpointHook', **arguments)
    train(theirs, 'CheckpointHook', **arguments)
    if 'out_dir' in arguments:
        ours, theirs = tmp_path / 'elsewhere' / 'ours', tmp_path / 'elsewhere' / 'theirs'
    kept, expected = weights(ours), weights(theirs)
    # A published file is named after the hash of its content, which holds the time.
    assert [name.partition('-')[0] for name in kept] == [name.partition('-')[0] for name in expected]
    for state, other in zip(kept.values(), expected.values(), strict=True):
        assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    pointers = [Path((tmp_path / name / 'last_checkpoint').read_text()) for name in ('ours', 'theirs')]
    assert pointers[0].name == pointers[1].name and pointers[0].is_file()


def test_the_old_best_goes_when_the_new_one_is_whole(tmp_path, monkeypatch):
    removed = []

    def remove(path, remove=os.remove):
        removed.append((Path(path).name, sorted(weights(tmp_path))))
        remove(path)

    monkeypatch.setattr(checkpoint_hook.os, 'remove', remove)
    train(tmp_path, 'SafeCheckpointHook', interval=1, save_best='acc')
    epochs = [f'epoch_{number}.pth' for number in (1, 2, 3, 4)]
    assert removed == [
        ('best_acc_epoch_1.pth', ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth', *epochs[:2]]),
        ('best_acc_epoch_2.pth', ['best_acc_epoch_2.pth', 'best_acc_epoch_4.pth', *epochs]),
    ]


def test_a_new_best_under_the_name_of_the_old_one_stays(tmp_path):
    runner = train(tmp_path, 'SafeCheckpointHook', interval=1, save_best='acc')
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    for score in (8.0, 9.0):
        hook.after_val_epoch(runner, dict(acc=score))
        assert [name for name in weights(tmp_path) if 'best' in name] == ['best_acc_epoch_5.pth']


@pytest.fixture
def warnings(caplog):
    """Messages logged at WARNING."""
    logger = MMLogger.get_instance('find_newest', log_level='INFO')
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


def save(path, age=0):
    torch.save(dict(meta=dict(name=path.name), weight=torch.randn(1000)), path)
    os.utime(path, (10**9 - age, 10**9 - age))


def test_the_pointer_comes_first(tmp_path, warnings):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        save(tmp_path / name)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), dict(name='epoch_1.pth'))
    assert warnings() == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Payload:
    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def plant(path):
    payload = Payload()
    payload.folder = str(path.parent / 'planted')
    torch.save(dict(meta=dict(seed=payload)), path)


@pytest.mark.parametrize('harm', [cut, flip, plant, Path.unlink, lambda path: path.write_bytes(b'')])
def test_what_does_not_read_is_passed_over_with_one_warning(tmp_path, warnings, harm):
    for age, name in enumerate(['epoch_10.pth', 'epoch_9.pth', 'epoch_11.pth', 'best_acc_epoch_10.pth']):
        save(tmp_path / name, age)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_10.pth'))
    harm(tmp_path / 'epoch_10.pth')
    assert find_newest(tmp_path)[0] == str(tmp_path / 'epoch_9.pth')
    (warning,) = warnings()
    assert warning.startswith(f'{tmp_path}/epoch_10.pth does not read as a checkpoint (') and '\n' not in warning
    assert not (tmp_path / 'planted').exists()


@pytest.mark.parametrize('pointer', [None, '', '/of/another/machine/epoch_2.pth'])
def test_without_a_pointer_that_leads_anywhere(tmp_path, pointer):
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_text(pointer)
    assert find_newest(tmp_path) is None
    for name in ('iter_100.pth', 'iter_20.pth', 'iter_3.pth'):
        save(tmp_path / name)
    assert find_newest(tmp_path)[0] == str(tmp_path / 'iter_100.pth'), 'the number decides between files of one age'


def test_checkpoints_in_another_folder(tmp_path, warnings):
    (tmp_path / 'out').mkdir()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        save(tmp_path / 'out' / name)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'out' / 'epoch_2.pth'))
    cut(tmp_path / 'out' / 'epoch_2.pth')
    assert find_newest(tmp_path)[0] == str(tmp_path / 'out' / 'epoch_1.pth')
    assert len(warnings()) == 1


def test_no_checkpoint_of_a_run_is_one_line(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    with pytest.raises(InputError, match=r"weights\.pth does not read as a checkpoint \(KeyError: 'meta'\)"):
        read_meta(tmp_path / 'weights.pth')


def test_the_planted_payload_would_have_run(tmp_path):
    plant(tmp_path / 'epoch_1.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert (tmp_path / 'planted').is_dir()
