import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step_variants

    return step_variants


@pytest.fixture
def meters(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step_meters

    return step_meters


def test_reference_implementation_has_the_losses_of_the_reference_preset(variants):
    # The baseline must compute the same numbers, only more slowly.
    from step_reference_implementation import ReferenceImplementation

    setting = variants.Setting(depth=18, size=64, batch=3, objects=4, jitter=3, queue=96)
    cfg = variants.load_preset('ccop-reference_r50_fpn_800e_coco', setting)
    cfg.model.update(key_batch='none')
    cfg.model.image_projector.dropout = cfg.model.object_projector.dropout = 0.0
    views, samples = variants.make_batch(setting)
    results = []
    for slow in (True, False):
        torch.manual_seed(1)
        model = variants.prepare(variants.build_module(cfg.model), setting)
        model.encoder_k.steps = 1  # both apply Eq. 2 instead of copying the weights
        jitter = model.box_jitter.jitter

        def jitter_by_box(boxes, img_shape, generator=None, jitter=jitter):
            # The noise depends on the box only, so that jittering all boxes or those of one image is equal.
            rows = [jitter(box[None], img_shape, torch.Generator().manual_seed(int(box.sum() * 100))) for box in boxes]
            return tuple(torch.cat(part) for part in zip(*rows, strict=True))

        model.box_jitter.jitter = jitter_by_box
        losses = (ReferenceImplementation(model) if slow else model).loss(views, samples)
        total = losses['loss_img'] + losses['loss_obj'] + losses['loss_intra']
        total.backward()
        results.append((losses, model))
    (slow_losses, slow_model), (losses, model) = results
    for name in ('loss_img', 'loss_obj', 'loss_intra'):
        torch.testing.assert_close(slow_losses[name], losses[name], rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = slow_model.get_parameter(name).grad
            if gradient is None:  # the baseline does not pool levels without boxes
                assert not parameter.grad.any(), name
            else:  # float32 through 18 layers: relative to the norm of the gradient
                assert (gradient - parameter.grad).norm() < 1e-2 * parameter.grad.norm() + 1e-6, name
    torch.testing.assert_close(slow_model.object_queue.keys, model.object_queue.keys, rtol=0, atol=1e-4)


def test_ccop_whole_does_not_split_batch_norm_statistics(variants):
    setting = variants.Setting(depth=18, size=64, batch=4, objects=2, jitter=2, queue=16)
    assert variants.ccop_whole(setting).module.key_batch == 'none'
    assert variants.ccop(setting).module.key_batch == 'auto'


def test_peak_memory_counts_what_is_allocated_at_once(variants, meters):
    class Allocates:
        setting = variants.Setting()

        def __call__(self):
            first = torch.empty(3000, 1000)
            del first
            second, third = torch.empty(1000, 1000), torch.empty(1000, 1000)
            return second, third

    assert meters.peak_bytes(Allocates()) == pytest.approx(12e6, rel=0.01)


@pytest.mark.slow
def test_subprocess_step_is_the_same_step(variants, meters):
    from step_subprocess import SubprocessStep

    setting = variants.Setting(depth=18, size=64, batch=2, objects=2, jitter=2, queue=16)
    remote = SubprocessStep('released', setting, 1)
    local = variants.VARIANTS['released'](setting)
    assert min(meters.measure(remote, 'seconds')) > 1e-4
    local()  # now both have optimizer state
    for meter in ('resident_bytes', 'flop'):
        assert meters.measure(remote, meter) == meters.measure(local, meter)
    process = remote.process
    del remote
    process.join(30)
    assert process.exitcode == 0, 'the process ends with the object'


def test_only_released_alone_runs_in_another_process(variants, monkeypatch):
    import step

    monkeypatch.setattr(step, 'SubprocessStep', lambda variant, setting, threads: ('remote', variant, setting))
    monkeypatch.setattr(step, 'VARIANTS', dict.fromkeys(variants.VARIANTS, lambda setting: 'local'))
    setting = variants.Setting()
    assert {step.build_step(name, setting) for name in variants.VARIANTS} == {'local'}
    assert step.build_step('released_alone', setting) == ('remote', 'released', setting)


@pytest.mark.slow
def test_subprocess_that_dies_is_reported(variants, meters):
    from step_subprocess import SubprocessStep

    remote = SubprocessStep('absent', variants.Setting(), 1)
    with pytest.raises(RuntimeError, match='"absent"'):
        meters.measure(remote, 'seconds')


def run_benchmark(script, *options):
    """Runs a benchmark on one thread; returns its output."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_step_suite_prints_a_table_and_writes_json(tmp_path):
    options = ['--tiny', '--repeats', 1, '--threads', 1, '--json', tmp_path / 'results.json']
    output = run_benchmark('step.py', *options)
    assert 'stages of ccop, %: ' in output
    results = json.loads((tmp_path / 'results.json').read_text())
    # With one repeat, the median of the ratios is the ratio.
    for prefix in ('', 'r18_'):
        for name in ('ccop', 'moco', 'released', 'released_alone'):
            expected = results[f'{prefix}{name}_seconds'] / results[f'{prefix}floor_seconds']
            assert results[f'{prefix}{name}_over_floor'] == pytest.approx(expected)
    for name in ('released', 'released_alone'):
        expected = results[f'{name}_seconds'] / results['ccop_seconds']
        assert results[f'{name}_over_ccop_time'] == pytest.approx(expected)
    expected = results['released_extra_mib'] / results['ccop_extra_mib']
    assert results['released_over_ccop_extra_memory'] == pytest.approx(expected)
    stages = [value for name, value in results.items() if name.startswith('share_')]
    assert sum(stages) == pytest.approx(100, abs=15)
    assert results['ccop_gflop'] > results['floor_gflop']
    assert set(results) == set(NAMES) | {f'r18_{name}' for name in NAMES}


VARIANTS = ('moco', 'released', 'ccop_reference', 'ccop_whole', 'released_alone', 'ccop')
STAGES = (
    ['query_images', 'key_images', 'query_MLP', 'key_MLP', 'query_RoIAlign', 'key_RoIAlign', 'losses']
    + ['EMA', 'jitter', 'queues', 'backward', 'optimizer', 'rest']
)  # fmt: skip
#: All names in the output of the step suite; other programs read it.
NAMES = [
    'rounds',
    *(f'{name}_{suffix}' for name in ('floor', *VARIANTS) for suffix in ('seconds', 'images_per_second', 'peak_mib')),
    *(f'{name}_gflop' for name in ('floor', *VARIANTS)),
    *(f'{name}_{suffix}' for name in VARIANTS for suffix in ('over_floor', 'over_floor_cpu_time', 'extra_mib')),
    *(f'{name}_over_ccop_{suffix}' for name in ('released', 'released_alone') for suffix in ('time', 'cpu_time')),
    'released_over_ccop_extra_memory',
    'released_over_ccop_extra_memory_with_state',
    *(f'share_{stage}' for stage in STAGES),
]


@pytest.mark.slow
def test_gpu_suite_smoke_test(tmp_path):
    options = ['--suite', 'gpu', '--device', 'cpu', '--tiny', '--minutes', 0, '--threads', 1]
    run_benchmark('step.py', *options, '--json', tmp_path / 'results.json')
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['card'] == 'CPU'
    assert {'matrix_tflops', 'batch4_ccop_over_floor', 'batch8_ccop_share_of_matrix_rate'} <= set(results)
