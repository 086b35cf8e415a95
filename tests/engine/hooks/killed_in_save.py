"""Kills small runs at every file operation of a checkpoint save and resumes them. Run by test_checkpoint_hook.py.

Usage: python killed_in_save.py OUT HOOK. Prints a JSON line per operation.

Each run trains for two epochs with max_keep_ckpts=1. While the second checkpoint is saved, the process kills itself
before its n-th operation on a file of the work directory, for n = 0, 1, ... until a run completes. Runs are forked, so
that the upstream libraries are imported only once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from torch import nn

import ccop_mm  # noqa: F401
from ccop_mm.engine import launch

#: Audit events of file operations, which Python raises before it executes them.
OPERATIONS = ('open', 'os.chmod', 'os.rename', 'os.remove')


@MODELS.register_module()
class LinearModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


@DATASETS.register_module()
class Numbers:
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


@HOOKS.register_module()
class KillBefore(Hook):
    """Kills the process before the given operation of the save after the second epoch."""

    priority = 'LOW'  # before the checkpoint hook

    def __init__(self, operation):
        self.countdown = operation

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            sys.addaudithook(lambda event, args: self.count(event, args, runner.work_dir))

    def count(self, event, args, folder):
        if event in OPERATIONS and isinstance(args[0], str) and os.path.dirname(args[0]) == folder:
            if self.countdown == 0:
                self.countdown = -1
                if event == 'os.chmod':
                    os.truncate(args[0], 100)  # simulates a kill during the write
                print(json.dumps(dict(before=event)), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            self.countdown -= 1


def train(work_dir, hook, epochs, custom_hooks=(), resume=None):
    cfg = Config(
        dict(
            default_scope='mmselfsup',
            work_dir=str(work_dir),
            model=dict(type='LinearModel'),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=dict(type='Numbers'),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            default_hooks=dict(checkpoint=dict(type=hook, interval=1, max_keep_ckpts=1)),
            custom_hooks=list(custom_hooks),
            randomness=dict(seed=1),
            log_level='ERROR',
        )
    )
    launch.set_resume(cfg, resume)
    return launch.train(cfg)


def run_forked(function):
    """Runs a function in a forked process; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:
            print(json.dumps(dict(error=repr(error))), flush=True)
            os._exit(1)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def read_epoch(path):
    """Returns the epoch of a checkpoint, or None if it cannot be read."""
    try:
        return torch.load(path, weights_only=True)['meta']['epoch']
    except Exception:
        return None


def report(work_dir, hook):
    """Resumes a killed run; prints the files it started from and its result."""
    left = sorted(filter(None, map(read_epoch, work_dir.glob('*.pth'))))
    temporary = len(list(work_dir.glob('.*.tmp')))
    runner = train(work_dir, hook, 3, resume='auto')
    result = dict(
        left=left,
        temporary=temporary,
        resumed_from=runner._load_from and Path(runner._load_from).name,
        weight=runner.model.layer.weight.item(),
        files=sorted(path.name for path in work_dir.iterdir() if path.is_file() and path.suffix != '.py'),
    )
    print(json.dumps(result), flush=True)


def main():
    out, hook = Path(sys.argv[1]), sys.argv[2]
    for operation in range(30):
        work_dir = out / str(operation)
        kill = [dict(type='KillBefore', operation=operation)]
        if run_forked(lambda: train(work_dir, hook, 2, kill)) != signal.SIGKILL:  # noqa: B023
            break
        run_forked(lambda: report(work_dir, hook))  # noqa: B023
    print(json.dumps(dict(uninterrupted=train(out / 'uninterrupted', hook, 3).model.layer.weight.item())), flush=True)


if __name__ == '__main__':
    main()
