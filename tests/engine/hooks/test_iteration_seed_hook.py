import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

NAMES = iter(range(100))


class Sampler(BaseModel):
    """Records random numbers of each iteration; samples ``extra`` more that it does not record."""

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
        model=Sampler(extra),
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


def test_random_numbers_depend_only_on_seed_and_iteration(tmp_path):
    uninterrupted = run(tmp_path / 'uninterrupted').model.seen
    assert len({number for sampled in uninterrupted for number in sampled}) == 3 * 12
    assert run(tmp_path / 'other', extra=5).model.seen == uninterrupted
    assert not set(run(tmp_path / 'seed2', randomness=dict(seed=2)).model.seen) & set(uninterrupted)
    run(tmp_path / 'cut', train_cfg=dict(by_epoch=True, max_epochs=3))
    assert run(tmp_path / 'cut', resume=True).model.seen == uninterrupted[9:]


@pytest.mark.parametrize('resume', [False, True])
def test_sets_epoch_of_sampler(tmp_path, resume):
    if resume:
        run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2))
    assert run(tmp_path, resume=resume).train_dataloader.sampler.epoch == 3
