import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ccop_mm.debug import NonFiniteLossError, finite_loss_hook
from ccop_mm.debug.replay import replay

ROOT = Path(__file__).resolve().parents[2]


class Recorder(Hook):
    """Copies the state of the model after every iteration."""

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def test_stops_before_optimizer_step_and_writes_dump(small_config):
    recorder, runner = Recorder(), Runner.from_cfg(small_config('5.png'))
    runner.register_hook(recorder)
    with pytest.raises(NonFiniteLossError) as caught:
        runner.train()
    path = Path(runner.work_dir, 'nonfinite_iter_3_rank_0.pth')
    message = str(caught.value)
    assert '\n' not in message
    assert 'at iteration 3 of 4 on rank 0: loss nan, loss_img nan' in message
    assert '; images 14, 15; ' in message
    assert f'python tools/misc/replay.py {path} ({path.stat().st_size / 2**20:.0f} MiB)' in message

    dump = torch.load(path, weights_only=True)
    assert [Path(image['img_path']).name for image in dump['images']] == ['4.png', '5.png']
    before = recorder.states[1]
    assert len(recorder.states) == 2 and dump['state'].keys() == before.keys()
    for name, value in before.items():
        # The key encoder was updated in this iteration; a training step does not read running statistics.
        if not name.startswith('encoder_k.') and 'running' not in name and 'num_batches' not in name:
            assert torch.equal(dump['state'][name], value), name
    assert dump['state']['encoder_k._extra_state'] == before['encoder_k._extra_state'] == 2


def test_finite_run_is_not_affected(small_config):
    logs, states = [], []
    for hooks in ([dict(type='FiniteLossHook')], []):
        cfg = small_config(work_dir=f'with{len(hooks)}')
        cfg.custom_hooks = [dict(type='SpatialCurriculumHook'), *hooks]
        cfg.experiment_name = f'finite{len(hooks)}'
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
    """A model whose loss equals the mean of the batch, with a gradient for its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, mode='tensor'):
        value = torch.stack(inputs).mean()
        return dict(loss_a=(self.weight - self.weight.detach() + 1) * value, similarity=value * torch.nan)


class SkippingWrapper(OptimWrapper):
    """Skips the step like a gradient scaler that found an infinite gradient."""

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


class ToyDetector(Toy):
    def forward(self, inputs, data_samples, mode='tensor'):
        return super().forward(inputs, mode)


def collate_detection(rows):
    samples = [DetDataSample(metainfo=dict(img_id=int(row[1]), img_path=f'train/{int(row[1])}.jpg')) for row in rows]
    return dict(inputs=[row[0] for row in rows], data_samples=samples)


def test_detector_stops_with_the_paths_of_its_images(tmp_path):
    model = ToyDetector()
    values = torch.tensor([[0.5, 7], [torch.nan, 8], [0.5, 9]])
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(values, batch_size=1, collate_fn=collate_detection),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        custom_hooks=[dict(type='mmselfsup.FiniteLossHook')],
        default_scope='mmdet',
        log_level='CRITICAL',
        experiment_name=tmp_path.name,
    )
    with pytest.raises(NonFiniteLossError, match=r'at iteration 2 of 3 .* images 8 \(train/8\.jpg\); ') as caught:
        runner.train()
    assert 'replay' not in str(caught.value) and not list(tmp_path.glob('*.pth'))
    assert model.weight == 1 - 0.5 * 0.5  # only the first step


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stop_before_weights_change(tmp_path, value):
    model = Toy()
    with pytest.raises(
        NonFiniteLossError, match=rf'at iteration 2 of 3 on rank 0: loss {value:.4g}, loss_a {value:.4g};'
    ):
        train_toy(tmp_path, [0.5, value, 0.5], model=model)
    assert model.weight == 1 - 0.5 * 0.5  # only the first step


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(type=OptimWrapper, accumulative_counts=4, optimizer=dict(type='SGD', lr=0.5)),
        dict(type=SkippingWrapper, optimizer=dict(type='SGD', lr=0.5)),
    ],
)
def test_stops_in_the_same_iteration_without_optimizer_step(tmp_path, wrapper):
    with pytest.raises(NonFiniteLossError, match='at iteration 2 of 4'):
        train_toy(tmp_path, [0.5, torch.nan, 0.5, 0.5], wrapper)


def test_other_logged_values_may_be_non_finite(tmp_path):
    assert train_toy(tmp_path, [0.5, 0.25]).iter == 2  # the similarity of Toy is always NaN


def test_images_are_reported_if_dump_cannot_be_written(small_config, monkeypatch):
    def fail(path, **content):
        raise OSError('No space left on device')

    monkeypatch.setattr(finite_loss_hook, 'write_dump', fail)
    with pytest.raises(NonFiniteLossError, match=r'images 10, 11; .*nonfinite_iter_1_rank_0\.pth .*: No space left'):
        Runner.from_cfg(small_config('1.png')).train()


def test_pre_training_config_uses_the_hook():
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py')
    assert dict(type='FiniteLossHook') in cfg.custom_hooks


@pytest.mark.slow
def test_all_ranks_stop_if_one_loss_is_nan(small_config, tmp_path):
    cfg = small_config('6.png')  # rank 0 has the batches 0 2 | 4 6, rank 1 has 1 3 | 5 7
    cfg.model.key_batch = 'none'  # the losses of a rank do not depend on keys of the other
    cfg.dump(tmp_path / 'ranks.py')
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *launch, ROOT / 'tools/train.py', tmp_path / 'ranks.py', '--launcher', 'pytorch']
    # A rank without the other would wait for half an hour.
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and 'finite_loss_hook.py", line' not in done.stderr, 'one line per rank, no traceback'
    path = tmp_path / 'work' / 'nonfinite_iter_2_rank_0.pth'
    (failed,) = (line for line in done.stderr.splitlines() if 'error: ' in line and 'on rank 0: loss nan' in line)
    assert 'at iteration 2 of 2' in failed and '; images 14, 16; ' in failed
    assert f'python tools/misc/replay.py {path}' in failed
    (other,) = (line for line in done.stderr.splitlines() if 'error: rank 1 stopped' in line)
    assert 'at iteration 2 of 2' in other and 'on rank 0;' in other
    assert [file.name for file in path.parent.glob('*.pth')] == [path.name]
    assert [image.img_id for image in replay(path, imports=['poison']).failing_images] == [16]
