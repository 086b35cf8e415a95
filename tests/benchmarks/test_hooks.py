from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from small_pretraining import image_folder, small_config  # noqa: F401  fixtures

from ccop_mm.engine import launch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import hooks

    return hooks


@HOOKS.register_module()
class CountCalls(Hook):
    """Counts the iterations in which it is enabled, and in which iteration it was called."""

    def __init__(self):
        self.iterations = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.iterations.append(runner.iter)


def test_hooks_are_off_in_every_other_iteration(hooks, small_config):  # noqa: F811
    rounds = 6
    cfg = small_config(experiment_name='hooks_alternate')
    cfg.custom_hooks.append(dict(type='CountCalls'))
    cfg.train_cfg = dict(type='AlternatingLoop', rounds=rounds, hooks=('CountCalls', 'StopHook'), max_epochs=10)
    launch.check(cfg).raise_errors()
    runner = launch.build_runner(cfg)
    runner.train()
    loop = runner.train_loop
    assert runner.iter == 2 * (rounds + hooks.WARM_UP)
    for times in (*loop.wall.values(), *loop.cpu.values(), loop.in_hooks):
        assert len(times) == rounds
    (counter,) = (hook for hook in runner.hooks if isinstance(hook, CountCalls))
    pairs = [iteration // 2 for iteration in dict.fromkeys(counter.iterations) if iteration < runner.iter]
    # In one of both iterations of each pair, and once more on its own after each measured pair.
    assert len(counter.iterations) == hooks.WARM_UP + 2 * rounds
    assert set(pairs) >= set(range(hooks.WARM_UP + rounds))


def test_seeding_takes_time(hooks):
    assert 0.1 < hooks.seeding_microseconds(count=100) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['pretraining', 'detector'])
def test_configs_of_both_kinds_train(hooks, kind, monkeypatch):
    monkeypatch.setattr(hooks, 'WARM_UP', 0)
    row = hooks.measure(kind, rounds=1)
    assert row['hooks'] == {'pretraining': 4, 'detector': 6}[kind]
    assert row['seconds'] > 0.01 and 0 < row['microseconds_in_hooks'] < 1e6 * row['seconds']
