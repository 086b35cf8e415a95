import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ccop_mm.debug import NonFiniteLossError
from ccop_mm.debug.replay import replay
from ccop_mm.utils.errors import InputError


class ChangeAt(Hook):
    """Modifies the model before one iteration."""

    def __init__(self, iteration, change):
        self.iteration, self.change = iteration, change

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            self.change(runner.model)


def run_until_non_finite(cfg, *hooks):
    """Trains until the loss is non-finite; returns the path of the dump."""
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    with pytest.raises(NonFiniteLossError):
        runner.train()
    (path,) = Path(runner.work_dir).glob('nonfinite_*.pth')
    return path


def test_finds_the_image(small_config, call_tool):
    path = run_until_non_finite(small_config('5.png', train_dataloader={'batch_size': 4}))
    report = replay(path, imports=['poison'])
    recorded = torch.load(path, weights_only=True)['losses']
    assert report.batch.non_finite_losses == {name for name, value in recorded.items() if not math.isfinite(value)}
    assert {'loss_img', 'loss_obj'} < report.batch.non_finite_losses
    assert [image.img_id for image in report.images] == [14, 15, 16, 17]
    assert [image.img_id for image in report.failing_images] == [15]
    assert report.failing_images[0].notes == ['view 0: 1 of 12288 values are non-finite']
    assert report.reproduced and not report.notes
    code, out, _ = call_tool('misc/replay.py', path, '--import', 'poison')
    assert code == 0
    assert 'replay: loss nan, loss_img nan' in out and re.search(r'\nreproduced by .*: 15\n$', out)


@pytest.mark.parametrize('key_batch, wrapper', [('split', 'OptimWrapper'), ('none', 'Bfloat16Wrapper')])
def test_replay_equals_the_step_bit_by_bit(small_config, call_tool, key_batch, wrapper):
    def change_temperature(model):
        model.image_head.temperature = 1e-45  # every logit becomes infinite or NaN

    # In the third step, queues have wrapped around, the key encoder was updated, and dropout was sampled.
    cfg = small_config(model={'key_batch': key_batch}, optim_wrapper={'type': wrapper})
    path = run_until_non_finite(cfg, ChangeAt(3, change_temperature))
    recorded = torch.load(path, weights_only=True)
    assert recorded['iteration'] == 3 and recorded['progress'] == 2 / 4
    assert recorded['autocast'] == ('torch.bfloat16' if wrapper == 'Bfloat16Wrapper' else None)
    report = replay(path, imports=['poison'])
    for name in ('loss_obj', 'loss_intra'):
        assert report.batch.losses[name] == recorded['losses'][name] != 0, name
    assert math.isnan(recorded['losses']['loss_img']) and math.isfinite(report.batch.losses['loss_img'])
    assert not report.reproduced, 'the changed temperature is not part of the config'
    code, out, _ = call_tool('misc/replay.py', path, '--import', 'poison')
    assert code == 1 and 'not reproduced' in out


def test_finds_the_module(small_config):
    report = replay(
        run_until_non_finite(small_config(model={'image_head': {'temperature': 1e-45}})), imports=['poison']
    )
    assert report.batch.source == 'image_head (ImageContrastHead)'
    assert report.batch.non_finite_losses == {'loss', 'loss_img'}
    assert report.failing_images == report.images


def test_reports_non_finite_weights(small_config):
    def set_weight_to_nan(model):
        model.neck.fpn_convs[0].conv.weight.data[0, 0, 0, 0] = torch.nan

    report = replay(run_until_non_finite(small_config(), ChangeAt(2, set_weight_to_nan)), imports=['poison'])
    (note,) = report.notes
    assert '2 weights' in note, 'the query encoder and the updated key encoder'
    assert 'neck.fpn_convs.0.conv.weight' in note
    assert report.batch.source == 'neck.fpn_convs.0.conv (Conv2d, non-finite weights)'


def test_reports_boxes_without_area(small_config):
    path = run_until_non_finite(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    boxes = dump['batch']['data_samples'][1]['data']['pseudo_label']['data']['boxes_k']
    boxes[0] = torch.tensor([70.0, 3, 80, 9])  # outside of the view
    torch.save(dump, path)
    assert replay(path, imports=['poison']).images[1].notes == [
        f'boxes_k: 1 of {len(boxes)} boxes have no area in the view'
    ]


def test_dump_cannot_call_unregistered_functions(small_config, tmp_path):
    path = run_until_non_finite(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    dump['config']['model']['neck'] = dict(type='os.mkdir', path=str(marker))
    torch.save(dump, path)
    with pytest.raises(InputError, match=r"model\.neck\.type='os\.mkdir'"):
        replay(path)
    assert not marker.exists()


def test_dump_cannot_import_unknown_modules(small_config, tmp_path, monkeypatch):
    path = run_until_non_finite(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    (tmp_path / 'unknown.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    dump['config']['custom_imports'] = dict(imports=['ccop_mm', 'poison', 'unknown'])
    torch.save(dump, path)
    with pytest.raises(InputError, match='imported unknown, .*--import unknown$'):
        replay(path, imports=['poison'])
    assert not marker.exists()
    replay(path, imports=['poison', 'unknown'])
    assert marker.exists()


@pytest.mark.parametrize('where', ['default_scope', '_scope_'])
def test_dump_cannot_import_unknown_scopes(small_config, tmp_path, monkeypatch, where):
    path = run_until_non_finite(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    (tmp_path / f'unknown{where}').mkdir()
    (tmp_path / f'unknown{where}' / '__init__.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    (dump['config'] if where == 'default_scope' else dump['config']['model'])[where] = f'unknown{where}'
    torch.save(dump, path)
    with pytest.raises(InputError, match=f'unknown{where}'):
        replay(path, imports=['poison'])
    assert not marker.exists()


def test_invalid_files(tmp_path, call_tool):
    torch.save(dict(state_dict={}), tmp_path / 'checkpoint.pth')
    torch.save(np.float64, tmp_path / 'code.pth')
    (tmp_path / 'text.pth').write_text('text')
    for name, problem in (
        ('checkpoint.pth', 'not a dump'),
        ('code.pth', 'cannot be read as a dump'),
        ('text.pth', 'cannot be read as a dump'),
        ('absent.pth', 'does not exist'),
    ):
        code, _, line = call_tool('misc/replay.py', tmp_path / name)
        assert code == 2 and line.count('\n') == 1
        assert str(tmp_path / name) in line and problem in line
