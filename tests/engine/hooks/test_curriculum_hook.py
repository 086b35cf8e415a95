import time

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ccop_mm.engine import SpatialCurriculumHook
from ccop_mm.models import SCSBoxJitter
from ccop_mm.utils.errors import InputError


class Numbers(Dataset):
    METAINFO = {}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Toy(BaseModel):
    """Records the state of the curriculum in every iteration."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.box_jitter = SCSBoxJitter()
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        self.seen.append((self.box_jitter.progress, self.box_jitter.zeta, self.box_jitter.beta))
        self.box_jitter.jitter(torch.tensor([[1.0, 1, 20, 30]]), (64, 64))
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


def run(tmp_path, name, train_cfg, model=None, resume=False, **changes):
    runner = Runner(
        model=model or Toy(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(Numbers(), batch_size=3, collate_fn=lambda rows: dict(inputs=rows)),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), **changes),
        custom_hooks=[dict(type='mmselfsup.SpatialCurriculumHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        log_level='ERROR',
        experiment_name=name,
        resume=resume,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    'train_cfg, iterations',
    [(dict(by_epoch=True, max_epochs=5), 20), (dict(type='IterBasedTrainLoop', max_iters=7), 7)],
)
def test_progress_is_fraction_of_training_completed(tmp_path, train_cfg, iterations):
    seen = run(tmp_path, f'fraction{iterations}', train_cfg, accumulative_counts=2).model.seen
    assert [t for t, _, _ in seen] == [iteration / iterations for iteration in range(iterations)]
    for t, zeta, beta in seen:
        assert zeta == pytest.approx(0.3 + 0.7 * t)  # Sec. 3.3: 0.3 to 1.0
        assert beta == pytest.approx(0.8 - 0.5 * t)  # Sec. 3.3: 0.8 to 0.3


def test_state_is_logged(tmp_path):
    scalars = run(tmp_path, 'logged', dict(by_epoch=True, max_epochs=1)).message_hub.log_scalars
    assert scalars['train/zeta'].data[0].tolist() == pytest.approx([0.3 + 0.7 * t for t in (0, 0.25, 0.5, 0.75)])
    assert scalars['train/beta'].data[0].tolist() == pytest.approx([0.8 - 0.5 * t for t in (0, 0.25, 0.5, 0.75)])
    assert ((scalars['train/acceptance'].data[0] > 0.001) & (scalars['train/acceptance'].data[0] < 0.2)).all()


def test_resumed_run_continues_curriculum(tmp_path):
    uninterrupted = run(tmp_path / 'uninterrupted', 'uninterrupted', dict(by_epoch=True, max_epochs=4)).model.seen

    class Stop(Exception):
        pass

    class Interrupted(Toy):
        def forward(self, inputs, mode='tensor'):
            if len(self.seen) == 10:  # in the middle of the third epoch
                raise Stop
            return super().forward(inputs, mode)

    with pytest.raises(Stop):
        run(tmp_path / 'cut', 'cut', dict(by_epoch=True, max_epochs=4), model=Interrupted())
    resumed = run(tmp_path / 'cut', 'resumed', dict(by_epoch=True, max_epochs=4), resume=True).model.seen
    assert resumed == uninterrupted[8:]


def test_finds_box_jitter_inside_wrappers():
    toy = Toy()
    wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = toy
    assert is_model_wrapper(wrapper)

    class FakeRunner:
        model, iter, max_iters = wrapper, 3, 4

    SpatialCurriculumHook().before_train_iter(FakeRunner, 0)
    assert toy.box_jitter.progress == 0.75


def test_model_without_box_jitter():
    class FakeRunner:
        model = nn.Linear(1, 1)

    with pytest.raises(InputError, match='box_jitter.*Linear'):
        SpatialCurriculumHook().before_train(FakeRunner)


def test_progress_does_not_exceed_one():
    class FakeRunner:
        model, iter, max_iters = Toy(), 9, 4  # a loop that exceeds its length

    SpatialCurriculumHook().before_train_iter(FakeRunner, 0)
    jitter = FakeRunner.model.box_jitter
    assert (jitter.progress, jitter.zeta, jitter.beta) == (1.0, pytest.approx(1.0), pytest.approx(0.3))


def plain_runner(config, **changes):
    """mmengine's Runner, as other projects build it."""
    from mmengine.runner import Runner

    from ccop_mm.compat import prepare_config

    config.merge_from_dict({'model.queue_len': 'auto', 'train_cfg.max_epochs': 1, **changes})
    config.experiment_name = f'plain_runner_{time.monotonic_ns()}'
    return Runner.from_cfg(prepare_config(config))


def test_queues_of_a_run_of_another_program_are_sized(small_config):
    from ccop_mm.engine.queue_lengths import fit_queues

    expected = small_config()
    expected.model.queue_len = 'auto'
    fit_queues(expected)
    runner = plain_runner(small_config())
    assert set(runner.model.unsized_queues()) == {'queue_len', 'object_queue_len'}
    runner.train()
    assert not runner.model.unsized_queues()
    lengths = len(runner.model.image_queue), len(runner.model.object_queue)
    assert lengths == (expected.model.queue_len, expected.model.object_queue_len)
    assert runner.iter == 4 and runner.model.image_queue.pointer.item() == 8 % lengths[0]


def test_one_queue_may_have_a_fixed_length(small_config):
    runner = plain_runner(small_config(), **{'model.object_queue_len': 7})
    runner.train()
    assert len(runner.model.object_queue) == 7 and len(runner.model.image_queue) > 1


def test_sized_queues_are_those_of_the_first_rank(small_config, monkeypatch):
    from ccop_mm.engine import queue_lengths

    sent = []

    def broadcast(keys):  # as if the first rank had sent ones
        sent.append(keys.shape)
        keys.fill_(1)

    monkeypatch.setattr(queue_lengths, 'broadcast', broadcast)
    runner = plain_runner(small_config())
    loop = runner.build_train_loop(runner.cfg.train_cfg)
    queue_lengths.size_queues(runner.model, loop.dataloader.dataset)
    queues = runner.model.image_queue, runner.model.object_queue
    assert sent == [queue.keys.shape for queue in queues] and all((queue.keys == 1).all() for queue in queues)


def test_other_datasets_need_a_number():
    from types import SimpleNamespace

    from ccop_mm.engine.queue_lengths import size_queues

    model = SimpleNamespace(unsized_queues=lambda: {'queue_len': None})
    with pytest.raises(InputError, match='list'):
        size_queues(model, [])
