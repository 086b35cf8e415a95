import contextlib
import logging
import re

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner
from toy_training import toy_config

from ccop_mm.engine.hooks import first_iteration_hook


class Clock:
    """Replaces the clock, which :class:`Tick` advances."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Stop(Exception):
    pass


class Tick(Hook):
    """Advances the clock before the other hooks; stops after eleven iterations.

    An iteration takes two seconds, the start of the first one eight, and each validation, after two iterations, 200.
    """

    priority = 'VERY_HIGH'

    def __init__(self, clock):
        self.clock = clock

    def before_train(self, runner):
        self.clock.now += 1000  # e.g. a probe of the initial weights

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.clock.now += 100

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.clock.now += 10 if runner.iter == 0 else 2
        if runner.iter == 11:
            raise Stop


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def train(tmp_path, monkeypatch, name, **changes):
    clock, lines = Clock(), Lines()
    monkeypatch.setattr(first_iteration_hook, 'time', clock)
    cfg = toy_config(
        tmp_path, experiment_name=name, custom_hooks=[dict(type='mmselfsup.FirstIterationHook')], **changes
    )
    cfg.model.norm_cfg = dict(type='BN')
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1000)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Tick(clock))
    runner.logger.addHandler(lines)
    with contextlib.suppress(Stop):
        runner.train()
    return [line for line in lines.lines if re.match(r'iteration \d+ of', line)]


@pytest.mark.filterwarnings('error:Converting a tensor with requires_grad')
def test_first_iteration_is_logged_with_an_estimate(tmp_path, monkeypatch):
    first, tenth = train(tmp_path, monkeypatch, 'first', train_cfg=dict(by_epoch=True, max_epochs=1800))
    assert first.startswith('iteration 1 of 3600: loss ')
    assert '10.0 s' in first and '10 h 0 min' in first
    assert tenth.startswith('iteration 10 of 3600: 2.00 s per iteration') and '2 h 0 min' in tenth


def test_resumed_run_logs_its_first_iteration(tmp_path, monkeypatch):
    short = dict(by_epoch=True, max_epochs=1)
    assert len(train(tmp_path, monkeypatch, 'short', train_cfg=short, param_scheduler=[])) == 1
    (line,) = train(tmp_path, monkeypatch, 'resumed', resume=True, param_scheduler=[])
    assert line.startswith('iteration 3 of 4: loss ')
