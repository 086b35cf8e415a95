from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.engine import ViewStatisticsHook


def batch(*counts):
    samples = [SelfSupDataSample() for _ in counts]
    for sample, count in zip(samples, counts, strict=True):
        sample.pseudo_label = InstanceData(boxes_q=torch.zeros(count, 4), boxes_k=torch.zeros(count, 4))
    return dict(data_samples=samples)


def test_fraction_of_the_epoch_so_far():
    hub = MessageHub.get_instance('view statistics')
    runner, hook = SimpleNamespace(message_hub=hub), ViewStatisticsHook()
    fractions = []
    for epoch in (((0, 3), (2, 1)), ((4, 0), (0, 0))):
        hook.before_train_epoch(runner)
        for counts in epoch:
            hook.after_train_iter(runner, 0, batch(*counts))
            fractions.append(hub.get_scalar('train/pairs_without_object').current())
    assert fractions == pytest.approx([1 / 2, 1 / 4, 1 / 2, 3 / 4])


class CountObjects(Hook):
    def __init__(self):
        self.counts = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.counts += [len(sample.pseudo_label.boxes_q) for sample in data_batch['data_samples']]


@pytest.mark.slow
def test_training_run_logs_fraction(small_config):
    cfg = small_config(custom_hooks=[dict(type='SpatialCurriculumHook'), dict(type='ViewStatisticsHook')])
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=6)  # mmengine counts it as one epoch
    cfg.train_dataloader.dataset.pipeline[1].transforms[0].scale = (0.05, 0.3)  # small crops share few objects
    runner, counter = Runner.from_cfg(cfg), CountObjects()
    runner.register_hook(counter)
    runner.train()
    fraction = counter.counts.count(0) / 12
    assert len(counter.counts) == 12 and 0 < fraction < 1
    assert runner.message_hub.get_scalar('train/pairs_without_object').current() == pytest.approx(fraction)
