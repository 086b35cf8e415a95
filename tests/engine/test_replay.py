import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ccop_mm.engine import NonFiniteLossError
from ccop_mm.engine.replay import replay
from ccop_mm.errors import InputError

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'replay.py'


class ChangeAt(Hook):
    """Does something to the model before one iteration."""

    def __init__(self, iteration, change):
        self.iteration, self.change = iteration, change

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            self.change(runner.model)


def stop(cfg, *hooks):
    """Runs until the loss is not finite; returns the dump's path."""
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    with pytest.raises(NonFiniteLossError):
        runner.train()
    (path,) = Path(runner.work_dir).glob('nonfinite_*.pth')
    return path


def call_tool(*arguments):
    spec = importlib.util.spec_from_file_location('replay_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main([str(argument) for argument in arguments])


def test_names_exactly_the_image_and_where(small_config, capsys):
    path = stop(small_config('5.png', train_dataloader={'batch_size': 4}))
    report = replay(path, imports=['poison'])
    recorded = torch.load(path, weights_only=True)['losses']
    assert report.batch.faults == {name for name, value in recorded.items() if not math.isfinite(value)}
    assert {'loss_img', 'loss_obj'} < report.batch.faults
    assert [image.img_id for image in report.images] == [14, 15, 16, 17]
    assert [image.img_id for image in report.culprits] == [15]
    assert report.culprits[0].notes == ['view 0: 1 of 12288 values are not finite']
    assert report.reproduced and not report.notes
    assert call_tool(path, '--import', 'poison') == 0
    out = capsys.readouterr().out
    assert 'its replay:  loss nan, loss_img nan' in out and out.endswith('\nreproduced, alone by: 15\n')


@pytest.mark.parametrize('key_batch, wrapper', [('split', 'OptimWrapper'), ('none', 'Bfloat16Wrapper')])
def test_repeats_the_step_to_the_last_bit(small_config, capsys, key_batch, wrapper):
    def spoil(model):
        model.image_head.temperature = 1e-45  # every logit becomes infinite or NaN

    # The third step: the queues have wrapped around, the key encoder has moved, dropout has drawn.
    cfg = small_config(model={'key_batch': key_batch}, optim_wrapper={'type': wrapper})
    path = stop(cfg, ChangeAt(3, spoil))
    recorded = torch.load(path, weights_only=True)
    assert recorded['iteration'] == 3 and recorded['progress'] == 2 / 4
    assert recorded['autocast'] == ('torch.bfloat16' if wrapper == 'Bfloat16Wrapper' else None)
    report = replay(path, imports=['poison'])
    for name in ('loss_obj', 'loss_intra'):
        assert report.batch.losses[name] == recorded['losses'][name] != 0, name
    assert math.isnan(recorded['losses']['loss_img']) and math.isfinite(report.batch.losses['loss_img'])
    assert not report.reproduced, 'the temperature was changed behind the config'
    assert call_tool(path, '--import', 'poison') == 1
    assert 'not reproduced' in capsys.readouterr().out


def test_names_the_module(small_config):
    report = replay(stop(small_config(model={'image_head': {'temperature': 1e-45}})), imports=['poison'])
    assert report.batch.source == 'image_head (ImageContrastHead)'
    assert report.batch.faults == {'loss', 'loss_img'}
    assert 'in the model or its settings' in str(report)


def test_says_that_weights_were_at_fault(small_config):
    def spoil(model):
        model.neck.fpn_convs[0].conv.weight.data[0, 0, 0, 0] = torch.nan

    report = replay(stop(small_config(), ChangeAt(2, spoil)), imports=['poison'])
    assert report.notes == [
        '2 weights were not finite before the step (first neck.fpn_convs.0.conv.weight): an earlier step or what was '
        'loaded is at fault, not this batch'
    ]  # the key encoder has followed
    assert report.batch.source == 'neck.fpn_convs.0.conv (Conv2d, whose weights are not finite)'


def test_notes_boxes_without_area(small_config):
    path = stop(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    boxes = dump['batch']['data_samples'][1]['data']['pseudo_label']['data']['boxes_k']
    boxes[0] = torch.tensor([70.0, 3, 80, 9])  # outside
    torch.save(dump, path)
    assert replay(path, imports=['poison']).images[1].notes == [
        f'boxes_k: 1 of {len(boxes)} boxes have no area in the view'
    ]


def test_a_dump_cannot_call_what_it_likes(small_config, tmp_path):
    path = stop(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    dump['config']['model']['neck'] = dict(type='os.mkdir', path=str(marker))
    torch.save(dump, path)
    with pytest.raises(InputError, match=r"model\.neck\.type='os\.mkdir' is not a registered part"):
        replay(path)
    assert not marker.exists()


def test_a_dump_cannot_import_what_it_likes(small_config, tmp_path, monkeypatch):
    path = stop(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    (tmp_path / 'stranger.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    dump['config']['custom_imports'] = dict(imports=['ccop_mm', 'poison', 'stranger'])
    torch.save(dump, path)
    with pytest.raises(InputError, match='the run imported stranger, .* add --import stranger$'):
        replay(path, imports=['poison'])
    assert not marker.exists()
    replay(path, imports=['poison', 'stranger'])
    assert marker.exists()


@pytest.mark.parametrize('where', ['default_scope', '_scope_'])
def test_a_dump_cannot_name_a_scope_to_import(small_config, tmp_path, monkeypatch, where):
    path = stop(small_config('0.png'))
    dump = torch.load(path, weights_only=True)
    marker = tmp_path / 'marker'
    (tmp_path / f'stranger{where}').mkdir()
    (tmp_path / f'stranger{where}' / '__init__.py').write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    (dump['config'] if where == 'default_scope' else dump['config']['model'])[where] = f'stranger{where}'
    torch.save(dump, path)
    with pytest.raises(InputError, match=f'stranger{where}.*this dump is not replayed'):
        replay(path, imports=['poison'])
    assert not marker.exists()


def test_another_file_is_one_line(tmp_path, capsys):
    torch.save(dict(state_dict={}), tmp_path / 'checkpoint.pth')
    torch.save(np.float64, tmp_path / 'code.pth')
    (tmp_path / 'text.pth').write_text('text')
    for name, fault in (
        ('checkpoint.pth', 'is not a dump of a step'),
        ('code.pth', 'does not read as a dump'),
        ('text.pth', 'does not read as a dump'),
        ('absent.pth', 'no dump '),
    ):
        with pytest.raises(SystemExit) as stopped:
            call_tool(tmp_path / name)
        line = capsys.readouterr().err
        assert stopped.value.code == 2 and fault in line and line.count('\n') == 1
