from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.engine import ViewStatisticsHook


def batch(*counts):
    samples = [SelfSupDataSample() for _ in counts]
    for sample, count in zip(samples, counts, strict=True):
        sample.pseudo_label = InstanceData(boxes_q=torch.zeros(count, 4), boxes_k=torch.zeros(count, 4))
    return dict(data_samples=samples)


def test_share_of_the_epoch_so_far():
    hub = MessageHub.get_instance('view statistics')
    runner, hook = SimpleNamespace(message_hub=hub), ViewStatisticsHook()
    shares = []
    for epoch in (((0, 3), (2, 1)), ((4, 0), (0, 0))):
        hook.before_train_epoch(runner)
        for counts in epoch:
            hook.after_train_iter(runner, 0, batch(*counts))
            shares.append(hub.get_scalar('train/pairs_without_object').current())
    assert shares == pytest.approx([1 / 2, 1 / 4, 1 / 2, 3 / 4])


def test_a_training_run_logs_it(small_config):
    from mmengine.runner import Runner

    cfg = small_config(custom_hooks=[dict(type='SpatialCurriculumHook'), dict(type='ViewStatisticsHook')])
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)  # one epoch, as mmengine sees it
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert 0 <= runner.message_hub.get_scalar('train/pairs_without_object').current() <= 1
