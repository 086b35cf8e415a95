import logging
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer
from mmselfsup.structures import SelfSupDataSample
from torch import nn

from ccop_mm.engine import TrainingHealthHook
from ccop_mm.engine.health_hook import newest_keys, repeated_share
from ccop_mm.engine.launch import train
from ccop_mm.errors import InputError
from ccop_mm.models.queue import FeatureQueue

BATCH, LENGTH, DIM = 8, 64, 16


class Hub:
    def __init__(self):
        self.log_scalars = {}

    def update_scalar(self, name, value):
        self.log_scalars.setdefault(name, HistoryBuffer()).update(value)


class FakeRunner:
    """What the hook reads of a runner: a model with queues, the log so far, and the iteration."""

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


def run(steps, keys=None, interval=1, ids=None, **scalars):
    """``keys(step)``, ``ids(step)`` and ``scalars[name](step)`` say what each step brings; healthy where not given."""
    torch.manual_seed(0)
    runner, hook = FakeRunner(), TrainingHealthHook(interval=interval)
    healthy = dict(
        loss_img=lambda step: 2.0, loss_obj=lambda step: 2.0, objects_per_image=lambda step: 1.0,
        acceptance=lambda step: 0.1,
    )  # fmt: skip
    hook.before_train(runner)
    for runner.iter in range(steps):
        new = keys(runner.iter) if keys else torch.randn(BATCH, DIM)
        for queue in (runner.model.image_queue, runner.model.object_queue):
            queue.enqueue(F.normalize(new, dim=1))
        for name, value in {**healthy, **scalars}.items():
            runner.message_hub.update_scalar(f'train/{name}', value(runner.iter))
        names = ids(runner.iter) if ids else range(runner.iter * BATCH, (runner.iter + 1) * BATCH)
        samples = [SelfSupDataSample(metainfo=dict(img_id=name)) for name in names]
        hook.after_train_iter(runner, runner.iter, dict(data_samples=samples))
    return runner


def falling(step):
    """Full rank for 40 steps, then all keys nearly alike."""
    noise = torch.randn(BATCH, DIM)
    return noise if step < 40 else torch.ones(BATCH, DIM) + 0.05 * noise


def test_a_healthy_run_is_silent():
    runner = run(100)
    assert runner.lines == []
    assert 12 < runner.message_hub.log_scalars['train/rank_image'].current() <= 16
    assert 0.8 < runner.message_hub.log_scalars['train/spread_object'].current() <= 1.1


def test_collapse_is_said_once_for_each_kind_of_embedding():
    lines = run(100, keys=falling).lines
    assert len(lines) == 2
    for line, name in zip(lines, ('image', 'object'), strict=True):
        assert f'{name} embeddings collapse: the 64 newest keys use' in line
        assert 'lower the learning rate' in line
        assert 40 < int(line.split()[1].rstrip(':')) < 52


def test_a_low_rank_from_the_start_is_collapse_too():
    assert len(run(30, keys=lambda step: torch.ones(BATCH, DIM) + 0.01 * torch.randn(BATCH, DIM)).lines) == 2


def test_the_beginning_is_not_judged():
    # The queue of 64 is not yet filled by the first 7 steps of 8; three looks must agree.
    assert run(9, keys=lambda step: torch.ones(BATCH, DIM)).lines == []


@pytest.mark.parametrize('name, what', [('loss_img', 'image'), ('loss_obj', 'object')])
def test_loss_at_chance(name, what):
    chance = math.log(LENGTH + 1)
    lines = run(60, **{name: lambda step: chance - 0.01}).lines
    assert len(lines) == 1
    assert f'the {what} loss is at chance' in lines[0]
    assert run(60, **{name: lambda step: chance - 0.2}).lines == []
    # In the beginning it is there, rightly.
    assert run(60, **{name: lambda step: chance if step < 6 else 3.0}).lines == []


@pytest.mark.parametrize(
    'name, part',
    [('objects_per_image', 'only 0.00 objects of a photo'), ('acceptance', 'all candidates were rejected')],
)
def test_no_objects_and_no_candidates(name, part):
    lines = run(60, **{name: lambda step: 0.0}).lines
    assert len(lines) == 1
    assert part in lines[0]
    few = 0.01 if name == 'acceptance' else 1.0
    assert run(60, **{name: lambda step: 0.0 if step % 2 else few}).lines == []


def test_few_objects():
    # Means of two steps: the one that is looked at last tells another story.
    (line,) = run(60, interval=2, objects_per_image=lambda step: 0.4 + 0.8 * (step % 2)).lines
    assert 'only 0.80 objects of a photo were in both views' in line and 'num_proposals' in line
    assert run(60, interval=2, objects_per_image=lambda step: 1.6 - 0.8 * (step % 2)).lines == []


@pytest.mark.parametrize('name, bad, good', [('loss_img', math.log(LENGTH + 1), 2.0), ('acceptance', 0.0, 0.1)])
@pytest.mark.parametrize('start', [0, 20])
def test_three_looks_must_agree(name, bad, good, start):
    start = max(start, 7 if name == 'loss_img' else 0)  # from where on the loss is judged
    for looks, warnings in ((2, 0), (3, 1)):
        lines = run(40, **{name: lambda step, end=start + looks: bad if start <= step < end else good}).lines
        assert len(lines) == warnings, looks


def test_queue_full_of_the_same_images():
    lines = run(60, ids=lambda step: [(step * BATCH + n) % 24 for n in range(BATCH)]).lines
    assert len(lines) == 1
    assert 'its 64 keys are of 24 photos' in lines[0]
    assert "queue_len='auto' or 12" in lines[0]
    assert run(60, ids=lambda step: [(step * BATCH + n) % 56 for n in range(BATCH)]).lines == []


def test_it_looks_every_so_many_iterations_alone(monkeypatch):
    looks = []
    monkeypatch.setattr(
        'ccop_mm.engine.health_hook.effective_rank', lambda keys: looks.append(len(keys)) or torch.tensor(9.0)
    )
    run(40, interval=10)
    assert looks == [LENGTH] * 8  # two queues, four times


def test_newest_keys():
    queue = FeatureQueue(5, 2)
    for number in range(7):
        queue.enqueue(torch.tensor([[float(number), 0]]))
    assert newest_keys(queue, 3)[:, 0].tolist() == [6, 5, 4]
    assert sorted(newest_keys(queue, 99)[:, 0].tolist()) == [2, 3, 4, 5, 6]


def test_repeated_share():
    assert repeated_share([1, 2, 3]) == 0
    assert repeated_share([1, 1, 1, 1]) == 0.75


def test_bad_settings():
    with pytest.raises(InputError, match='interval and window are at least 1'):
        TrainingHealthHook(interval=0)


def test_in_a_real_run(small_config):
    cfg = small_config(custom_hooks=[dict(type='SpatialCurriculumHook'), dict(type='TrainingHealthHook', interval=2)])
    runner = train(cfg)
    scalars = runner.message_hub.log_scalars
    assert len(scalars['train/rank_image'].data[0]) == 2
    assert scalars['train/rank_object'].current() > 1
