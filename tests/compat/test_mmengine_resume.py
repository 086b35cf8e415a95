"""Patches of mmengine's training loops, which resume within an epoch and without loading earlier batches."""

import pytest
from mmengine.runner import EpochBasedTrainLoop, Runner, loops
from toy_training import ToyDataset, toy_config

from ccop_mm.compat import mmengine as patches


@pytest.fixture
def loaded(monkeypatch):
    """Returns a list of the samples that are loaded."""
    indices = []

    def load(self, index, load=ToyDataset.__getitem__):
        indices.append(index)
        return load(self, index)

    monkeypatch.setattr(ToyDataset, '__getitem__', load)
    return indices


def test_patches_are_applied_once():
    run_epoch, iterator = EpochBasedTrainLoop.run_epoch, loops._InfiniteDataloaderIterator
    patches.resume_within_epoch()
    patches.resume_without_loading()
    assert EpochBasedTrainLoop.run_epoch is run_epoch and loops._InfiniteDataloaderIterator is iterator


@pytest.mark.parametrize('hook, resumed', [([], [0, 1, 2, 3]), ([dict(type='mmselfsup.StopHook')], [2, 3])])
def test_epoch_is_resumed_within_it_only_with_stop_hook(tmp_path, loaded, hook, resumed):
    """Without the hook, mmengine starts the epoch again: the patch changes nothing."""
    options = dict(
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        custom_hooks=hook,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
    )
    name = f'resume_{len(hook)}'
    Runner.from_cfg(toy_config(tmp_path, experiment_name=name, **options)).train()
    loaded.clear()
    cfg = toy_config(
        tmp_path, experiment_name=f'{name}_resumed', resume=True, load_from=str(tmp_path / 'iter_3.pth'), **options
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert loaded == resumed
    assert runner.epoch == 2 and runner.iter == (4 if hook else 5)


@pytest.mark.parametrize('hook', [[], [dict(type='mmselfsup.StopHook')]])
def test_iteration_based_loop_starts_its_loader_late(tmp_path, loaded, hook):
    cfg = toy_config(tmp_path, experiment_name=f'late_{len(hook)}', custom_hooks=hook)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    loop = Runner.from_cfg(cfg).train_loop
    assert loop.dataloader_iterator._created is None
    loop.runner.train()
    assert loop.iter == 2 and loaded[:4] == [0, 1, 2, 3]


class EagerIterator:
    """Stands in for that of mmengine 0.10.7, without resets."""

    def __init__(self, dataloader):
        self._dataloader = dataloader
        self._iterator = iter(dataloader)
        self._epoch = 0

    def __next__(self):
        return next(self._iterator)


def run_and_discard(loop):
    """Stands in for ``IterBasedTrainLoop.run`` of mmengine 0.10.7, which discards batches when it is resumed."""
    loop.runner.call_hook('before_train')
    loop.runner.call_hook('before_train_epoch')
    for _ in range(loop._iter):
        next(loop.dataloader_iterator)
    while loop._iter < loop._max_iters:
        loop.run_iter(next(loop.dataloader_iterator))
    loop.runner.call_hook('after_train_epoch')
    loop.runner.call_hook('after_train')


@pytest.mark.parametrize('hook, resumed', [([], [0, 1, 2, 3]), ([dict(type='mmselfsup.StopHook')], [2, 3])])
def test_loop_that_discards_batches_does_not_load_them(tmp_path, loaded, monkeypatch, hook, resumed):
    monkeypatch.setattr(loops, '_InfiniteDataloaderIterator', EagerIterator)
    monkeypatch.setattr(loops.IterBasedTrainLoop, 'run', run_and_discard)
    patches.resume_without_loading()
    name = f'discard_{len(hook)}'
    options = dict(
        custom_hooks=hook,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
    )
    Runner.from_cfg(toy_config(tmp_path, experiment_name=name, **options)).train()
    assert loaded == [0, 1, 2, 3]
    loaded.clear()
    load_from = str(tmp_path / 'iter_1.pth')
    cfg = toy_config(tmp_path, experiment_name=f'{name}_resumed', resume=True, load_from=load_from, **options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2 and loaded == resumed
