import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

NAMES = iter(range(100))


class Draws(BaseModel):
    """Notes what each iteration draws, and draws more in some than in others."""

    def __init__(self, extra):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.extra = extra
        self.seen = []

    def forward(self, *inputs, mode='tensor'):
        self.seen.append((random.random(), np.random.rand(), float(torch.rand(()))))
        torch.rand(self.extra)
        return dict(loss=self.layer(torch.ones(1, 1)).square().mean())


def run(tmp_path, extra=0, resume=False, **changes):
    runner = Runner(
        model=Draws(extra),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=list(range(6)),
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate'),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            sampler_seed=dict(type='IterationSeedHook'), checkpoint=dict(type='CheckpointHook', interval=1)
        ),
        default_scope='mmselfsup',
        log_level='ERROR',
        experiment_name=f'seed_hook_{next(NAMES)}',
        resume=resume,
        **{'train_cfg': dict(by_epoch=True, max_epochs=4), 'randomness': dict(seed=1), **changes},
    )
    runner.train()
    return runner


def test_an_iterations_draws_depend_on_seed_and_iteration_alone(tmp_path):
    whole = run(tmp_path / 'whole').model.seen
    assert len({number for drawn in whole for number in drawn}) == 3 * 12
    assert run(tmp_path / 'other', extra=5).model.seen == whole
    assert not set(run(tmp_path / 'seed2', randomness=dict(seed=2)).model.seen) & set(whole)
    run(tmp_path / 'cut', train_cfg=dict(by_epoch=True, max_epochs=3))
    assert run(tmp_path / 'cut', resume=True).model.seen == whole[9:]


@pytest.mark.parametrize('resume', [False, True])
def test_sets_the_samplers_epoch_as_mmengines_hook_does(tmp_path, resume):
    if resume:
        run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2))
    assert run(tmp_path, resume=resume).train_dataloader.sampler.epoch == 3
