import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step_meters
    import step_released
    import step_variants

    return step_variants, step_released, step_meters


def test_the_released_way_has_the_losses_of_the_reference_preset(parts):
    # A slower way to the same numbers, and no other work.
    variants, released, _ = parts
    setting = variants.Setting(depth=18, size=64, batch=3, objects=4, jitter=3, queue=96)
    cfg = variants.preset('ccop-reference_r50_fpn_800e_coco', setting)
    cfg.model.update(key_batch='none')
    cfg.model.image_projector.dropout = cfg.model.object_projector.dropout = 0.0
    views, samples = variants.batch_of(setting)
    found = []
    for slow in (True, False):
        torch.manual_seed(1)
        model = variants.placed(variants.build(cfg.model), setting)
        model.encoder_k.steps = 1  # both move the key encoder by Eq. 2
        jitter = model.box_jitter.jitter

        def by_box(boxes, img_shape, generator=None, jitter=jitter):
            # Noise that depends on the box alone, whether boxes come all at once or image by image.
            rows = [jitter(box[None], img_shape, torch.Generator().manual_seed(int(box.sum() * 100))) for box in boxes]
            return tuple(torch.cat(part) for part in zip(*rows, strict=True))

        model.box_jitter.jitter = by_box
        way = released.ReleasedWay(model) if slow else model
        losses = way.loss(views, samples)
        total = losses['loss_img'] + losses['loss_obj'] + losses['loss_intra']
        total.backward()
        found.append((losses, model))
    (slow, slow_model), (ours, model) = found
    for name in ('loss_img', 'loss_obj', 'loss_intra'):
        torch.testing.assert_close(slow[name], ours[name], rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = slow_model.get_parameter(name).grad
            if other is None:  # a level without boxes is not pooled there
                assert not parameter.grad.any(), name
            else:  # float32 through 18 layers: by the size of the whole gradient
                assert (other - parameter.grad).norm() < 1e-2 * parameter.grad.norm() + 1e-6, name
    torch.testing.assert_close(slow_model.object_queue.keys, model.object_queue.keys, rtol=0, atol=1e-4)


def test_whole_batches_are_whole(parts):
    variants, _, _ = parts
    setting = variants.Setting(depth=18, size=64, batch=4, objects=2, jitter=2, queue=16)
    assert variants.ccop_whole(setting).module.key_batch == 'none'
    assert variants.ccop(setting).module.key_batch == 'auto'


def test_the_peak_is_that_of_what_is_held_at_once(parts):
    variants, _, meters = parts

    class Holds:
        setting = variants.Setting()

        def __call__(self):
            first = torch.empty(3000, 1000)
            del first
            second, third = torch.empty(1000, 1000), torch.empty(1000, 1000)
            return second, third

    assert meters.peak_bytes(Holds()) == pytest.approx(12e6, rel=0.01)


def test_a_step_elsewhere_is_the_same_step(parts):
    variants, _, meters = parts
    import step_process

    setting = variants.Setting(depth=18, size=64, batch=2, objects=2, jitter=2, queue=16)
    elsewhere = step_process.StepElsewhere('released', setting, 1)
    here = variants.VARIANTS['released'](setting)
    assert min(meters.measure(elsewhere, 'seconds')) > 0
    here()  # both have an optimizer's state now
    for meter in ('resident_bytes', 'flop'):
        assert meters.measure(elsewhere, meter) == meters.measure(here, meter)
    process = elsewhere.process
    del elsewhere
    process.join(30)
    assert process.exitcode == 0, 'it ends with the object'


def test_one_row_alone_has_another_process(parts, monkeypatch):
    variants, _, _ = parts
    import step

    monkeypatch.setattr(step, 'StepElsewhere', lambda variant, setting, threads: ('elsewhere', variant, setting))
    monkeypatch.setattr(step, 'VARIANTS', dict.fromkeys(variants.VARIANTS, lambda setting: 'here'))
    setting = variants.Setting()
    assert {step.built_step(name, setting) for name in variants.VARIANTS} == {'here'}
    assert step.built_step('released_alone', setting) == ('elsewhere', 'released', setting)


def test_a_step_that_dies_elsewhere_is_named(parts):
    variants, _, meters = parts
    import step_process

    elsewhere = step_process.StepElsewhere('absent', variants.Setting(), 1)
    with pytest.raises(RuntimeError, match='"absent" has ended'):
        meters.measure(elsewhere, 'seconds')


def test_one_command_prints_the_table_and_writes_the_figures(tmp_path):
    command = [BENCHMARKS / 'step.py', '--tiny', '--repeats', '1', '--json', tmp_path / 'figures.json']
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'stages of ccop, %: ' in done.stdout
    figures = json.loads((tmp_path / 'figures.json').read_text())
    for name in (
        'ccop_over_floor',
        'moco_over_floor',
        'released_over_floor',
        'released_over_ccop_time',
        'released_alone_over_ccop_time',
        'released_over_ccop_extra_memory',
        'r18_ccop_over_floor',
        'ccop_gflop',
    ):
        assert figures[name] > 0, name
    stages = [value for name, value in figures.items() if name.startswith('share_')]
    assert sum(stages) == pytest.approx(100, abs=15)
    assert figures['ccop_gflop'] > figures['floor_gflop']
