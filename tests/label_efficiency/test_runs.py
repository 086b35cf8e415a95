"""Config, length and folder of a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from ccop_mm.label_efficiency.detector import read_study_detector
from ccop_mm.label_efficiency.runs import (
    Run,
    RunData,
    RunFolder,
    default_iterations,
    describe_failure,
    format_settings,
    learning_rate_schedule,
    run_settings,
)
from ccop_mm.label_efficiency.weights import InitialWeights
from ccop_mm.utils.errors import InputError

WEIGHTS = InitialWeights('ccop', '/w/ccop.pth', 'CCOPPretrained')
DATA = RunData(Path('/d/train.json'), Path('/d/val.json'), '/d/images')


def make_run(weights=WEIGHTS, **changes):
    return Run(**{**dict(weights=weights, num_images=8, factor=3.0, seed=5, iterations=40, is_final=True), **changes})


def make_settings(study_data, run):
    return run_settings(run, read_study_detector(study_data / 'detector.py'), DATA, Path('/out'))


def test_settings(study_data):
    settings = make_settings(study_data, make_run())
    assert settings['train_cfg'] == dict(type='IterBasedTrainLoop', max_iters=40, val_interval=41)
    assert settings['optim_wrapper']['optimizer'] == dict(type='SGD', lr=0.03, momentum=0.9)
    assert settings['randomness'] == dict(seed=5) and settings['work_dir'] == '/out/work_dir'
    assert settings['train_dataloader']['sampler']['type'] == 'InfiniteSampler'
    assert settings['train_dataloader']['dataset']['ann_file'] == '/d/train.json'
    assert settings['test_dataloader']['dataset']['ann_file'] == settings['test_evaluator']['ann_file'] == '/d/val.json'
    assert settings['test_dataloader']['dataset']['data_prefix']['img'] == '/d/images/'
    assert [settings[f'val_{name}'] for name in ('dataloader', 'evaluator', 'cfg')] == [None] * 3
    assert 'auto_scale_lr' not in settings  # the rate is scaled already


@pytest.mark.parametrize('source', ['random', 'init_cfg', '/w/ccop.pth'])
def test_weights_of_the_model(source, study_data):
    path = study_data / 'detector.py'
    own = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    path.write_text(f'{path.read_text()}\nmodel["backbone"]["init_cfg"] = {own}\nload_from = "detector.pth"\n')
    weights = WEIGHTS if source.startswith('/') else InitialWeights('name', source)
    settings = make_settings(study_data, make_run(weights))
    model = settings['model']
    assert model['backbone'].get('init_cfg') == (own if source == 'init_cfg' else None)
    assert settings['load_from'] == ('detector.pth' if source == 'init_cfg' else None)
    expected = dict(type='CCOPPretrained', checkpoint='/w/ccop.pth') if source.startswith('/') else None
    assert model.get('init_cfg') == expected
    assert model['backbone']['frozen_stages'] == -1


def test_a_run_with_another_file_of_its_seed_has_another_config(study_data):
    texts = {}
    for digest in ('a', 'b'):
        weights = InitialWeights('ccop', '/w/{seed}.pth', 'CCOPPretrained', '', ((0, digest), (3, 'c')))
        for seed in (0, 3):
            settings = make_settings(study_data, make_run(weights, seed=seed))
            assert settings['model']['init_cfg']['checkpoint'] == f'/w/{seed}.pth'
            texts[digest, seed] = format_settings(settings)
    assert texts['a', 0] != texts['b', 0] and texts['a', 3] == texts['b', 3]


def test_names_are_unique():
    runs = [
        make_run(),
        make_run(factor=0.3),
        make_run(num_images=9),
        make_run(seed=6),
        make_run(is_final=False),
        make_run(InitialWeights('random', 'random')),
    ]
    assert len({run.name for run in runs}) == len({str(run) for run in runs}) == len(runs)


@pytest.mark.parametrize('iterations', [2, 15, 100, 5000])
def test_schedule_equals_the_formula(iterations):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedulers = []
    for settings in learning_rate_schedule(iterations):
        arguments = {key: value for key, value in settings.items() if key != 'type'}
        schedulers.append(PARAM_SCHEDULERS.get(settings['type'])(optimizer, **arguments))
    wrapper = OptimWrapper(optimizer)
    warmup = min(500, round(0.1 * iterations))
    warmup = warmup if warmup > 1 else 0
    for iteration in range(iterations):
        if iteration < warmup:
            factor = 0.01 + 0.99 * iteration / (warmup - 1)
        else:
            # mmengine's cosine starts at round(0.1 n), which is 1 without a warm-up of at least two iterations.
            begin = warmup or min(500, round(0.1 * iterations))
            factor = (1 + math.cos(math.pi * max(0, iteration - begin) / (iterations - begin))) / 2
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * factor, rel=1e-6, abs=1e-9), iteration
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize(
    ('num_images', 'train_cfg', 'expected'),
    [
        (10, dict(max_epochs=12), 300),
        (800, dict(max_epochs=12), 600),
        (801, dict(max_epochs=12), 601),
        (2000, dict(max_epochs=300), 1000),
        (500, dict(max_iters=2000), 500),
        (2000, {}, 300),
    ],
)
def test_default_length(num_images, train_cfg, expected):
    assert default_iterations(num_images, 2000, 16, train_cfg) == expected


def test_written_config_is_equal(tmp_path):
    settings = dict(
        model=dict(
            ranges=((-1, 32), (32, float('inf'))), one=(1,), none=None, empty=(), flags=[True, 1e-5], text="it's"
        ),
        default_scope='mmdet',
        numbers={1: 'a', 'b c': -0.5},
    )
    path = tmp_path / 'config.py'
    path.write_text(format_settings(settings))
    read = Config.fromfile(path).to_dict()
    assert read == settings and isinstance(read['model']['ranges'][0], tuple)


def test_settings_of_any_detector_can_be_written_and_read(study_data, tmp_path):
    settings = make_settings(study_data, make_run())
    path = tmp_path / 'config.py'
    path.write_text(format_settings(settings))
    assert Config.fromfile(path).to_dict() == settings


def test_functions_cannot_be_written():
    with pytest.raises(InputError, match='model.hook'):
        format_settings(dict(model=dict(hook=print)))


def test_metrics_belong_to_a_config(tmp_path):
    folder = RunFolder(tmp_path, 'a = 1\n')
    (tmp_path / 'work_dir').mkdir()
    for name in ('iter_3.pth', 'last_checkpoint', 'detections.bbox.json', 'kept.json', '../metrics.json'):
        (tmp_path / 'work_dir' / name).touch()
    assert folder.read_metrics() is None
    folder.prepare()
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['config.py', 'kept.json', 'work_dir']
    assert folder.config.read_text() == 'a = 1\n'
    stored = dict(metrics=dict(AP=0.5), config=folder.digest)
    (tmp_path / 'metrics.json').write_text(json.dumps(stored))
    assert folder.read_metrics() == stored
    assert RunFolder(tmp_path, 'a = 2\n').read_metrics() is None


def test_reason_of_a_failure(tmp_path):
    log = tmp_path / 'log.txt'
    assert 'no log' in describe_failure(log)
    log.write_text('line\nRuntimeError: reason\n\n  \n')
    assert describe_failure(log) == 'RuntimeError: reason'
