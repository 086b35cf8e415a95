"""Run by test_checkpoint_hook.py: kills small runs in the middle of a save, at every step of it, and resumes them.

python killed_in_save.py OUT HOOK    prints a JSON line per step

Two epochs of training; while the second checkpoint is saved (max_keep_ckpts=1), the process kills itself just before
its n-th operation on a file of the work folder, for n = 0, 1, ... until a run comes through. Processes are forked, so
that the hosts are imported once.
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

#: What Python reports before it does it.
OPERATIONS = ('open', 'os.chmod', 'os.rename', 'os.remove')


@MODELS.register_module()
class Line(BaseModel):
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
    """Ends the process before the given operation of the save that follows the second epoch."""

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
                    os.truncate(args[0], 100)  # as if killed while it was being written
                print(json.dumps(dict(before=event)), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            self.countdown -= 1


def train(work_dir, hook, epochs, custom_hooks=(), resume=None):
    cfg = Config(
        dict(
            default_scope='mmselfsup',
            work_dir=str(work_dir),
            model=dict(type='Line'),
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


def forked(function):
    """Runs it in another process; returns the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:
            print(json.dumps(dict(error=repr(error))), flush=True)
            os._exit(1)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def reads(path):
    try:
        return torch.load(path, weights_only=True)['meta']['epoch']
    except Exception:
        return None


def report(work_dir, hook):
    """Resumes a killed run; prints what it began with and what became of it."""
    left = sorted(filter(None, map(reads, work_dir.glob('*.pth'))))
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
        if forked(lambda: train(work_dir, hook, 2, kill)) != signal.SIGKILL:  # noqa: B023
            break
        forked(lambda: report(work_dir, hook))  # noqa: B023
    print(json.dumps(dict(whole=train(out / 'whole', hook, 3).model.layer.weight.item())), flush=True)


if __name__ == '__main__':
    main()
