import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ccop_mm.engine.hooks import checkpoint_hook

SCRIPT = Path(__file__).with_name('killed_in_save.py')


@pytest.mark.slow
def test_run_killed_at_any_operation_of_a_save_can_be_resumed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), 'SafeCheckpointHook'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    uninterrupted = lines.pop()['uninterrupted']
    kills, resumed = [line['before'] for line in lines[::2]], lines[1::2]
    # Write and rename the checkpoint, write and rename the pointer, delete. The last 'open' follows the save.
    assert kills == ['open', 'os.chmod', 'os.rename'] * 2 + ['os.remove', 'open']
    assert [line['left'] for line in resumed] == [[1]] * 3 + [[1, 2]] * 4 + [[2]]
    assert [line['temporary'] for line in resumed] == [0, 1, 1] * 2 + [0, 0]
    assert [line['resumed_from'] for line in resumed] == ['epoch_1.pth'] * 6 + ['epoch_2.pth'] * 2
    for line in resumed:
        assert line['weight'] == uninterrupted
        assert line['files'] == ['epoch_3.pth', 'last_checkpoint']


class LinearModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean())


class Validate(Hook):
    """Passes scores to the checkpoint hook as a validation after each epoch would."""

    def before_train_epoch(self, runner):
        if runner.epoch > 0:
            score = [0, 1, 3, 2, 4][runner.epoch]
            (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
            hook.after_val_epoch(runner, dict(acc=float(score), loss=float(score)))


def train(work_dir, name, by_epoch=True, **arguments):
    torch.manual_seed(0)
    runner = Runner(
        model=LinearModel(),
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
def test_keeps_the_same_files_as_hook_of_mmengine(tmp_path, arguments):
    if 'out_dir' in arguments:
        arguments = dict(arguments, out_dir=str(tmp_path / 'elsewhere'))
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    train(ours, 'SafeCheckpointHook', **arguments)
    train(theirs, 'CheckpointHook', **arguments)
    if 'out_dir' in arguments:
        ours, theirs = tmp_path / 'elsewhere' / 'ours', tmp_path / 'elsewhere' / 'theirs'
    kept, expected = weights(ours), weights(theirs)
    # The name of a published file contains the hash of its content, which includes the time.
    assert [name.partition('-')[0] for name in kept] == [name.partition('-')[0] for name in expected]
    for state, other in zip(kept.values(), expected.values(), strict=True):
        assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    pointers = [Path((tmp_path / name / 'last_checkpoint').read_text()) for name in ('ours', 'theirs')]
    assert pointers[0].name == pointers[1].name and pointers[0].is_file()


def test_previous_best_is_deleted_after_new_best_is_complete(tmp_path, monkeypatch):
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


def test_new_best_with_same_path_is_not_deleted(tmp_path):
    runner = train(tmp_path, 'SafeCheckpointHook', interval=1, save_best='acc')
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    for score in (8.0, 9.0):
        hook.after_val_epoch(runner, dict(acc=score))
        assert [name for name in weights(tmp_path) if 'best' in name] == ['best_acc_epoch_5.pth']
