import logging
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer
from mmselfsup.structures import SelfSupDataSample
from torch import nn

from ccop_mm.engine import TrainingHealthHook
from ccop_mm.engine.hooks.health_hook import newest_keys, repeated_fraction
from ccop_mm.engine.launch import train
from ccop_mm.models.queue import FeatureQueue

BATCH, LENGTH, DIM = 8, 64, 16


class Hub:
    def __init__(self):
        self.log_scalars = {}

    def update_scalar(self, name, value):
        self.log_scalars.setdefault(name, HistoryBuffer()).update(value)


class FakeRunner:
    """The attributes of a runner that the hook uses: a model with queues, the logged scalars and the iteration."""

    max_iters = 100

    def __init__(self):
        self.model = nn.Module()
        self.model.image_queue, self.model.object_queue = FeatureQueue(LENGTH, DIM), FeatureQueue(LENGTH, DIM)
        self.message_hub, self.iter, self.lines = Hub(), 0, []
        self.train_dataloader = type('Loader', (), {'batch_size': BATCH})
        self.logger = self

    def log(self, level, line):
        assert level == logging.WARNING
        self.lines.append(line)


def run(iterations, keys=None, interval=1, ids=None, **scalars):
    """Runs the hook on keys, image ids and logged scalars, each a function of the iteration; healthy by default."""
    torch.manual_seed(0)
    runner, hook = FakeRunner(), TrainingHealthHook(interval=interval)
    healthy = dict(
        loss_img=lambda it: 2.0, loss_obj=lambda it: 2.0, objects_per_image=lambda it: 1.0,
        acceptance=lambda it: 0.1,
    )  # fmt: skip
    hook.before_train(runner)
    for runner.iter in range(iterations):
        new = keys(runner.iter) if keys else torch.randn(BATCH, DIM)
        for queue in (runner.model.image_queue, runner.model.object_queue):
            queue.enqueue(F.normalize(new, dim=1))
        for name, value in {**healthy, **scalars}.items():
            runner.message_hub.update_scalar(f'train/{name}', value(runner.iter))
        image_ids = ids(runner.iter) if ids else range(runner.iter * BATCH, (runner.iter + 1) * BATCH)
        samples = [SelfSupDataSample(metainfo=dict(img_id=image_id)) for image_id in image_ids]
        hook.after_train_iter(runner, runner.iter, dict(data_samples=samples))
    return runner


def collapsing_keys(it):
    """Keys of full rank for 40 iterations, then nearly equal keys."""
    noise = torch.randn(BATCH, DIM)
    return noise if it < 40 else torch.ones(BATCH, DIM) + 0.05 * noise


def test_healthy_run_causes_no_warnings():
    runner = run(100)
    assert runner.lines == []
    assert 12 < runner.message_hub.log_scalars['train/rank_image'].current() <= 16
    assert 0.8 < runner.message_hub.log_scalars['train/embedding_std_object'].current() <= 1.1


def test_collapse_is_logged_once_per_queue():
    lines = run(100, keys=collapsing_keys).lines
    assert len(lines) == 2
    for line, name in zip(lines, ('image', 'object'), strict=True):
        assert f'{name} embeddings collapse' in line and 'the 64 newest keys' in line
        assert 40 < int(line.split()[1].rstrip(':')) < 52, 'iteration of the warning'


def test_low_rank_from_the_start_is_collapse():
    assert len(run(30, keys=lambda it: torch.ones(BATCH, DIM) + 0.01 * torch.randn(BATCH, DIM)).lines) == 2


def test_start_of_training_is_not_checked():
    # 7 iterations of 8 keys do not fill the queue of 64, and three checks must fail.
    assert run(9, keys=lambda it: torch.ones(BATCH, DIM)).lines == []


@pytest.mark.parametrize('name', ['loss_img', 'loss_obj'])
def test_loss_at_chance(name):
    chance = math.log(LENGTH + 1)
    lines = run(60, **{name: lambda it: chance - 0.01}).lines
    assert len(lines) == 1
    assert f'{name} is at chance' in lines[0]
    assert run(60, **{name: lambda it: chance - 0.2}).lines == []
    # At the start of the training, the loss is expected to be at chance.
    assert run(60, **{name: lambda it: chance if it < 6 else 3.0}).lines == []


@pytest.mark.parametrize(
    'name, part',
    [('objects_per_image', '0.00 objects per image'), ('acceptance', 'acceptance is 0')],
)
def test_no_objects_and_no_candidates(name, part):
    lines = run(60, **{name: lambda it: 0.0}).lines
    assert len(lines) == 1
    assert part in lines[0]
    few = 0.01 if name == 'acceptance' else 1.0
    assert run(60, **{name: lambda it: 0.0 if it % 2 else few}).lines == []


def test_few_objects():
    # The checked value is the mean of two iterations, not the last one.
    (line,) = run(60, interval=2, objects_per_image=lambda it: 0.4 + 0.8 * (it % 2)).lines
    assert '0.80 objects per image' in line and 'num_proposals' in line
    assert run(60, interval=2, objects_per_image=lambda it: 1.6 - 0.8 * (it % 2)).lines == []


@pytest.mark.parametrize('name, bad, good', [('loss_img', math.log(LENGTH + 1), 2.0), ('acceptance', 0.0, 0.1)])
@pytest.mark.parametrize('start', [0, 20])
def test_three_checks_must_fail(name, bad, good, start):
    start = max(start, 7 if name == 'loss_img' else 0)  # the first iteration in which the loss is checked
    for failures, warnings in ((2, 0), (3, 1)):
        lines = run(40, **{name: lambda it, end=start + failures: bad if start <= it < end else good}).lines
        assert len(lines) == warnings, failures


def test_queue_full_of_the_same_images():
    lines = run(60, ids=lambda it: [(it * BATCH + n) % 24 for n in range(BATCH)]).lines
    assert len(lines) == 1
    assert '64 keys' in lines[0] and '24 images' in lines[0]
    assert "queue_len='auto' or 12" in lines[0]
    assert run(60, ids=lambda it: [(it * BATCH + n) % 56 for n in range(BATCH)]).lines == []


def test_keys_are_checked_every_interval(monkeypatch):
    checks = []
    monkeypatch.setattr(
        'ccop_mm.engine.hooks.health_hook.effective_rank', lambda keys: checks.append(len(keys)) or torch.tensor(9.0)
    )
    run(40, interval=10)
    assert checks == [LENGTH] * 8  # two queues, four checks


def test_newest_keys():
    queue = FeatureQueue(5, 2)
    for number in range(7):
        queue.enqueue(torch.tensor([[float(number), 0]]))
    assert newest_keys(queue, 3)[:, 0].tolist() == [6, 5, 4]
    assert sorted(newest_keys(queue, 99)[:, 0].tolist()) == [2, 3, 4, 5, 6]


def test_repeated_fraction():
    assert repeated_fraction([1, 2, 3]) == 0
    assert repeated_fraction([1, 1, 1, 1]) == 0.75


@pytest.mark.parametrize('arguments', [dict(interval=0), dict(window=0), dict(patience=1.5)])
def test_invalid_arguments(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f'{name}={value}'):
        TrainingHealthHook(**arguments)


def test_training_run(small_config):
    cfg = small_config(custom_hooks=[dict(type='SpatialCurriculumHook'), dict(type='TrainingHealthHook', interval=2)])
    runner = train(cfg)
    scalars = runner.message_hub.log_scalars
    assert len(scalars['train/rank_image'].data[0]) == 2
    assert scalars['train/rank_object'].current() > 1
