"""The check of mmcv's ops before a training and a test, with a simulated GPU."""

import re

import pytest
import torch
from mmcv.ops import RoIAlign
from mmengine.config import Config, ConfigDict
from torch import nn

from ccop_mm.engine import gpu_ops, launch
from ccop_mm.models.object_pool import ObjectPool
from ccop_mm.utils.errors import InputError


class Head(nn.Module):
    def __init__(self, test_cfg):
        super().__init__()
        self.test_cfg = test_cfg


MODELS = {
    'pre-training': (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), ObjectPool()), ['RoIAlign']),
    'detector': (lambda: nn.Sequential(Head(ConfigDict(nms=dict(type='nms'), max_per_img=9))), ['NMS']),
    'two-stage detector': (lambda: nn.Sequential(RoIAlign(7), Head(dict(nms=dict(type='nms')))), ['NMS', 'RoIAlign']),
    'without NMS': (lambda: nn.Sequential(Head(dict(max_per_img=9)), Head(dict(nms=None)), Head(None)), []),
    'classifier': (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 1)), []),
}


def simulate(monkeypatch, gpu, cuda):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(gpu_ops, 'get_compiling_cuda_version', lambda: cuda)


@pytest.mark.parametrize('name', MODELS)
def test_ops_for_the_cpu_are_an_error_on_a_gpu(monkeypatch, name):
    create, ops = MODELS[name]
    model = create()
    assert gpu_ops.list_ops(model) == ops
    for gpu, cuda in ((False, 'not available'), (True, '13.0'), (False, '13.0')):
        simulate(monkeypatch, gpu, cuda)
        gpu_ops.check_gpu_ops(model)
    simulate(monkeypatch, True, 'not available')
    if ops:
        with pytest.raises(InputError, match=f'{", ".join(ops)} .*ccop_mm.doctor'):
            gpu_ops.check_gpu_ops(model)
    else:
        gpu_ops.check_gpu_ops(model)


def test_installed_ops_report_their_cuda_version():
    assert re.fullmatch(r'not available|\d+\.\d+(\.\d+)?', gpu_ops.get_compiling_cuda_version())


class Runner:
    """Records whether a run was started."""

    model = nn.Sequential(RoIAlign(7))
    auto_scale_lr = None
    started = False

    def register_hook(self, hook):
        pass

    def train(self):
        self.started = True

    test = train


@pytest.mark.parametrize('command', ['train', 'test'])
def test_nothing_is_started(monkeypatch, tmp_path, command):
    runner = Runner()
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: runner)
    monkeypatch.setattr(launch, '_log_and_raise', lambda report, cfg: None)
    monkeypatch.setattr(launch, 'check', lambda *args: None)
    simulate(monkeypatch, True, 'not available')
    cfg = Config(dict(train_dataloader=dict(dataset=dict()), test_dataloader=dict(dataset=dict())))
    checkpoint = tmp_path / 'checkpoint.pth'
    checkpoint.touch()
    with pytest.raises(InputError, match='RoIAlign'):
        launch.train(cfg) if command == 'train' else launch.test(cfg, str(checkpoint))
    assert not runner.started
