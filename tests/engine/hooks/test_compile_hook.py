from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ccop_mm.engine import CompileHook
from ccop_mm.models.grouped_batch_norm import GroupedBatchNorm2d, set_groups
from ccop_mm.utils.errors import InputError

FAST = Path(__file__).resolve().parents[3] / 'configs' / 'ccop' / 'ccop-fast_r50_fpn_800e_coco.py'
ENCODERS = ['backbone', 'neck', 'encoder_k.backbone', 'encoder_k.neck']


def hooks(**options):
    return [dict(type='SpatialCurriculumHook'), dict(type='CompileHook', **options)]


@pytest.mark.slow
def test_compiled_run_has_same_losses_and_parameter_names(small_config):
    logs, names = [], []
    for number, custom_hooks in enumerate((hooks(backend='aot_eager'), [])):
        cfg = small_config(work_dir=f'run{number}', experiment_name=f'compiled{number}')
        cfg.custom_hooks = custom_hooks or [dict(type='SpatialCurriculumHook')]
        runner = Runner.from_cfg(cfg)
        runner.train()
        compiled = [name for name, part in runner.model.named_modules() if part._compiled_call_impl is not None]
        assert compiled == (ENCODERS if custom_hooks else [])
        logs.append({name: buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items() if 'loss' in name})
        names.append(list(runner.model.state_dict()))
    assert names[0] == names[1]
    for name, values in logs[1].items():
        assert logs[0][name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize('options, symbolic', [({}, False), (dict(dynamic=None), True)])
def test_batch_sizes_are_compiled_separately(options, symbolic):
    # With symbolic shapes, a pass over groups takes minutes to compile.
    torch._dynamo.reset()  # it caches the sizes of other tests
    seen = []

    def backend(graph, inputs):
        seen.append(any(isinstance(value, torch.SymInt) for value in inputs))
        return graph.forward

    model = nn.Sequential(nn.Conv2d(3, 4, 1), GroupedBatchNorm2d.convert(nn.BatchNorm2d(4)))
    set_groups([model], 2)
    CompileHook(parts=['1'], backend=backend, **options).before_train(SimpleNamespace(model=model))
    for batch_size in (4, 6):
        model(torch.rand(batch_size, 3, 8, 8))
    assert seen == [False, symbolic]


def test_missing_submodule(small_config):
    cfg = small_config()
    cfg.custom_hooks = hooks(parts=['backbone', 'head'])
    with pytest.raises(InputError, match='CCOP has no submodule head;'):
        Runner.from_cfg(cfg).train()


def test_fast_preset_differs_from_paper_preset_only_in_speed_settings():
    fast, plain = Config.fromfile(FAST), Config.fromfile(FAST.with_name('ccop_r50_fpn_800e_coco.py'))
    assert fast.model.pop('channels_last') is True
    wrapper = fast.pop('optim_wrapper')
    assert wrapper == dict(
        type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0, optimizer=plain.pop('optim_wrapper').optimizer
    )
    assert fast.custom_hooks.pop() == dict(type='CompileHook')
    assert fast.to_dict() == plain.to_dict()
