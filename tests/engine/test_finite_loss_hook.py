import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ccop_mm.engine import NonFiniteLossError, finite_loss_hook
from ccop_mm.engine.replay import replay

REPO = Path(__file__).resolve().parents[2]


class Recorder(Hook):
    """Keeps the model as every iteration leaves it."""

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def test_stops_before_the_step_with_ids_and_dump(small_config):
    recorder, runner = Recorder(), Runner.from_cfg(small_config('5.png'))
    runner.register_hook(recorder)
    with pytest.raises(NonFiniteLossError) as caught:
        runner.train()
    path = Path(runner.work_dir, 'nonfinite_iter_3_rank_0.pth')
    message = str(caught.value)
    assert '\n' not in message
    assert message.startswith('the loss is not finite at iteration 3 of 4 on rank 0: loss nan, loss_img nan')
    assert '; images 14, 15; ' in message
    assert f'python tools/replay.py {path} ({path.stat().st_size / 2**20:.0f} MiB)' in message

    dump = torch.load(path, weights_only=True)
    assert [Path(image['img_path']).name for image in dump['images']] == ['4.png', '5.png']
    before = recorder.states[1]
    assert len(recorder.states) == 2 and dump['state'].keys() == before.keys()
    for name, value in before.items():
        # The key encoder has moved on; running statistics are no part of what a training step reads.
        if not name.startswith('encoder_k.') and 'running' not in name and 'num_batches' not in name:
            assert torch.equal(dump['state'][name], value), name
    assert dump['state']['encoder_k._extra_state'] == before['encoder_k._extra_state'] == 2


def test_a_finite_run_is_untouched(small_config):
    logs, states = [], []
    for hooks in ([dict(type='FiniteLossHook')], []):
        cfg = small_config(work_dir=f'with{len(hooks)}')
        cfg.custom_hooks = [dict(type='SpatialCurriculumHook'), *hooks]
        cfg.experiment_name = f'untouched{len(hooks)}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        logs.append({name: list(buffer.data[0]) for name, buffer in runner.message_hub.log_scalars.items()})
        states.append(runner.model.state_dict())
        assert not runner.model._forward_hooks and not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    assert len(logs[0]['train/loss']) == 4
    for name in ('train/loss', 'train/loss_img', 'train/loss_obj', 'train/loss_intra'):
        assert logs[0][name] == logs[1][name]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


class Toy(BaseModel):
    """Its loss is the batch's mean times a weight; so the batch chooses the loss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode='tensor'):
        value = torch.stack(inputs).mean()
        return dict(loss_a=(self.weight - self.weight.detach() + 1) * value, similarity=value * torch.nan)


class SkippingWrapper(OptimWrapper):
    """As a gradient scaler that found an infinite gradient."""

    def step(self, **kwargs):
        pass


def train_toy(tmp_path, values, wrapper=None, model=None):
    runner = Runner(
        model=model or Toy(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(torch.tensor(values), batch_size=1, collate_fn=lambda rows: dict(inputs=rows)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=wrapper or dict(optimizer=dict(type='SGD', lr=0.5)),
        custom_hooks=[dict(type='mmselfsup.FiniteLossHook')],
        log_level='CRITICAL',
        experiment_name=tmp_path.name,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_every_kind_stops_before_the_weights_change(tmp_path, value):
    model = Toy()
    with pytest.raises(
        NonFiniteLossError, match=rf'at iteration 2 of 3 on rank 0: loss {value:.4g}, loss_a {value:.4g};'
    ):
        train_toy(tmp_path, [0.5, value, 0.5], model=model)
    assert model.weight == 1 - 0.5 * 0.5  # the first step alone


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(type=OptimWrapper, accumulative_counts=4, optimizer=dict(type='SGD', lr=0.5)),
        dict(type=SkippingWrapper, optimizer=dict(type='SGD', lr=0.5)),
    ],
)
def test_stops_at_the_same_iteration_where_the_optimizer_makes_no_step(tmp_path, wrapper):
    with pytest.raises(NonFiniteLossError, match='at iteration 2 of 4'):
        train_toy(tmp_path, [0.5, torch.nan, 0.5, 0.5], wrapper)


def test_values_that_are_no_losses_stop_nothing(tmp_path):
    assert train_toy(tmp_path, [0.5, 0.25]).iter == 2  # the toy's similarity is NaN at every step


def test_without_a_dump_the_images_are_still_named(small_config, monkeypatch):
    def full(path, **content):
        raise OSError('No space left on device')

    monkeypatch.setattr(finite_loss_hook, 'write_dump', full)
    with pytest.raises(NonFiniteLossError, match='images 10, 11; .*could not be written: No space left'):
        Runner.from_cfg(small_config('1.png')).train()


def test_the_pre_training_configs_have_it():
    cfg = Config.fromfile(REPO / 'configs/ccop/ccop_r50_fpn_800e_coco.py')
    assert dict(type='FiniteLossHook') in cfg.custom_hooks


def test_two_ranks_stop_together_when_one_sees_nan(small_config, tmp_path):
    cfg = small_config('6.png')  # of rank 0, at its second iteration: 0 2 | 4 6; rank 1 has 1 3 | 5 7
    cfg.model.key_batch = 'none'  # keys of the other rank stay out of this one's losses
    cfg.dump(tmp_path / 'ranks.py')
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *launch, REPO / 'tools/train.py', tmp_path / 'ranks.py', '--launcher', 'pytorch']
    # A rank that is left alone waits for half an hour.
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and 'finite_loss_hook.py", line' not in done.stderr, 'one line a rank, no traceback'
    path = tmp_path / 'work' / 'nonfinite_iter_2_rank_0.pth'
    assert 'error: the loss is not finite at iteration 2 of 2 on rank 0: loss nan' in done.stderr
    assert f'; images 14, 16; which image, and where: python tools/replay.py {path}' in done.stderr
    assert 'error: stopped at iteration 2 of 2: the loss is not finite on rank 0, see there' in done.stderr
    assert [file.name for file in path.parent.glob('*.pth')] == [path.name]
    assert [image.img_id for image in replay(path, imports=['poison']).culprits] == [16]
