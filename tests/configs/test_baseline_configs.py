"""The baselines: recipes, losses in float64, two processes, and the problems of mmselfsup 1.0.0 that they avoid."""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'configs' / 'baselines'
NAMES = ('mocov2', 'densecl', 'byol', 'simsiam', 'simclr')
RANKS = Path(__file__).with_name('baseline_ranks.py')
#: Settings that make a baseline small enough for two processes on a CPU, by option.
NARROW = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.neck.in_channels': 64,
    'model.neck.hid_channels': 16,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'train_cfg.max_epochs': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.interval': 1,
}
QUEUED = {'model.queue_len': 8}
PREDICTOR = {'model.head.predictor.hid_channels': 8}
FURTHER = {'mocov2': QUEUED, 'densecl': QUEUED, 'byol': PREDICTOR, 'simsiam': PREDICTOR, 'simclr': {}}


def read(name):
    return Config.fromfile(FOLDER / f'{name}_r50_800e_coco.py')


@pytest.fixture(scope='module')
def ranks():
    spec = importlib.util.spec_from_file_location('baseline_ranks', RANKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_baseline_is_tested():
    assert {path.name.split('_')[0] for path in FOLDER.glob('*.py')} == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_images_views_and_length_are_those_of_ccop(name):
    ccop, baseline = Config.fromfile(ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py'), read(name)
    dataset = dict(ccop.train_dataloader.dataset, num_proposals=0)
    batch_size = 64 if name == 'byol' else 32
    assert baseline.train_dataloader == dict(ccop.train_dataloader, dataset=dataset, batch_size=batch_size)
    assert baseline.train_cfg == ccop.train_cfg
    assert baseline.auto_scale_lr.base_batch_size == 8 * batch_size
    backbone = dict(baseline.model.backbone, out_indices=(0, 1, 2, 3), norm_cfg=ccop.model.backbone.norm_cfg)
    assert dict(backbone, zero_init_residual=False) == ccop.model.backbone
    # SimSiam's authors use zero-init residual blocks; mmselfsup's default for the others is none.
    assert baseline.model.backbone.zero_init_residual == (name == 'simsiam')
    hooks = [hook.type for hook in baseline.custom_hooks]
    assert hooks[0] == 'FiniteLossHook' and not {'SpatialCurriculumHook', 'TrainingHealthHook'} & set(hooks)


@pytest.mark.parametrize(
    'name, rate, decay, warmup',
    [
        ('mocov2', 0.3, 1e-4, 0),
        ('densecl', 0.3, 1e-4, 0),
        ('byol', 0.4, 1e-4, 4),
        ('simsiam', 0.05, 1e-4, 0),
        ('simclr', 0.3, 1e-6, 10),
    ],
)
def test_learning_rates_follow_the_recipe(name, rate, decay, warmup):
    config = read(name)
    assert (config.optim_wrapper.optimizer.lr, config.optim_wrapper.optimizer.weight_decay) == (rate, decay)
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedules = []
    for part in config.param_scheduler:
        cls = PARAM_SCHEDULERS.get(part['type'])
        settings = {key: value for key, value in part.items() if key not in ('type', 'convert_to_iter_based')}
        convert = {'epoch_length': 3} if part.get('convert_to_iter_based') else {}
        schedules.append(cls.build_iter_from_epoch(optimizer=optimizer, **settings, **convert))
    rates = []
    for _ in range(2400):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    for step in range(2400):
        if step < 3 * warmup:
            expected = rate * (1e-4 + (1 - 1e-4) * step / (3 * warmup - 1))
        else:
            expected = rate * (1 + math.cos(math.pi * (step - 3 * warmup) / (3 * (800 - warmup)))) / 2
        assert rates[step] == pytest.approx(expected, abs=2e-3 * rate), step


def options(settings):
    return ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_two_processes_train_and_their_checkpoint_transfers(name, image_folder, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = ['{FOLDER / f'{name}_r50_800e_coco.py'}']\n"
        'train_pipeline = _base_.train_pipeline\n'
        "train_pipeline[1]['transforms'][0]['size'] = 64\n"
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline, ann_file="images.json", '
        f'data_root="{image_folder}", data_prefix=dict(img_path="images/"), proposal_file="proposals.npz"))\n'
    )
    work_dir = tmp_path / 'work'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(ROOT / 'tools/train.py'), str(config), '--launcher', 'pytorch', '--work-dir', str(work_dir)]
    command += options({**NARROW, **FURTHER[name]})
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    from ccop_mm.utils.train_log import read_scalars

    losses = [row['loss'] for row in read_scalars(work_dir) if 'loss' in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    trained = torch.load(work_dir / 'epoch_1.pth', weights_only=True)['state_dict']
    assert not [key for key, value in trained.items() if value.is_floating_point() and not value.isfinite().all()]
    from mmengine.registry import MODELS

    from ccop_mm.weights import BackbonePretrained

    backbone = dict(type='mmdet.ResNet', depth=18, base_channels=8)
    detector = torch.nn.Module()
    detector.backbone = MODELS.build(backbone)
    initial = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    BackbonePretrained(str(work_dir / 'epoch_1.pth'))(detector)
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, trained[f'backbone.{key}'])
    moved = [key for key, value in initial.items() if not torch.equal(value, trained[f'backbone.{key}'])]
    assert len(moved) > 20


def info_nce(positive, negatives, temperature):
    """InfoNCE of one query in plain Python."""
    logits = [value / temperature for value in (positive, *negatives)]
    peak = max(logits)
    return -(logits[0] - peak) + math.log(sum(math.exp(logit - peak) for logit in logits))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def run_step(ranks, name):
    """Losses of a baseline on eight images, and the model before the step."""
    MessageHub.get_current_instance().update_info('max_iters', 10)
    torch.manual_seed(5)
    model, reference = ranks.build(name).train(), ranks.build(name).train()
    views = ranks.batch_of(8)
    losses = model(views, [SelfSupDataSample() for _ in range(8)], mode='loss')
    return {key: value.item() for key, value in losses.items()}, reference, views


def embed(network, images):
    return F.normalize(network(images), dim=1)


@torch.no_grad()
def test_simclr_in_plain_python(ranks):
    losses, model, views = run_step(ranks, 'simclr')
    z = [embed(lambda x: model.neck(model.backbone(x))[0], view).tolist() for view in views]
    rows = [vector for pair in zip(*z, strict=True) for vector in pair]  # both views of an image are neighbors
    expected = []
    for i, query in enumerate(rows):
        similarity = [sum(a * b for a, b in zip(query, other, strict=True)) for other in rows]
        partner = i ^ 1
        negatives = [value for j, value in enumerate(similarity) if j not in (i, partner)]
        expected.append(info_nce(similarity[partner], negatives, 0.1))
    assert losses == {'loss': pytest.approx(mean(expected), rel=1e-8)}


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


@pytest.mark.parametrize('name, factor', [('simsiam', 0.5), ('byol', 2.0)])
@torch.no_grad()
def test_simsiam_and_byol_in_plain_python(ranks, name, factor):
    losses, model, views = run_step(ranks, name)
    online = [model.neck(model.backbone(view))[0] for view in views]
    targets = online  # BYOL's target network equals the online network before the first update
    predictions = [model.head.predictor([z])[0].tolist() for z in online]
    sides = [-mean(cosine(p, z) for p, z in zip(predictions[a], targets[1 - a].tolist(), strict=True)) for a in (0, 1)]
    assert losses == {'loss': pytest.approx(factor * sum(sides), rel=1e-8)}


@torch.no_grad()
def test_densecl_in_plain_python(ranks):
    losses, model, views = run_step(ranks, 'densecl')
    maps, outputs = zip(*((model.backbone(view)[0], model.neck(model.backbone(view))) for view in views), strict=True)
    (q, q_grid, _), (k, k_grid, _) = ([F.normalize(part, dim=1) for part in output] for output in outputs)
    single = [info_nce((q[n] @ k[n]).item(), (q[n] @ model.queue).tolist(), 0.2) for n in range(8)]
    dense, (height, width) = [], maps[0].shape[2:]
    cells = list(itertools.product(range(height), range(width)))
    for n in range(8):
        for row, column in cells:
            query = maps[0][n, :, row, column].tolist()
            # The partner of a cell is the cell of the other view with the most similar backbone feature.
            partner = max(
                range(len(cells)), key=lambda c: cosine(query, maps[1][n, :, cells[c][0], cells[c][1]].tolist())
            )
            vector = q_grid[n, :, row * width + column]
            dense.append(info_nce((vector @ k_grid[n, :, partner]).item(), (vector @ model.queue2).tolist(), 0.2))
    assert losses['loss_single'] == pytest.approx(0.5 * mean(single), rel=1e-8)
    assert losses['loss_dense'] == pytest.approx(0.5 * mean(dense), rel=1e-8)


@pytest.fixture(scope='module')
def ranks_output(tmp_path_factory):
    out = tmp_path_factory.mktemp('ranks')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    for launcher in ([], ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']):
        command = [sys.executable, *launcher, str(RANKS), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_two_processes_equal_one_on_the_same_batch(ranks_output, name):
    one = torch.load(ranks_output / f'{name}-0-of-1.pt')
    two = [torch.load(ranks_output / f'{name}-{rank}-of-2.pt') for rank in (0, 1)]
    for key, value in one['losses'].items():
        torch.testing.assert_close((two[0]['losses'][key] + two[1]['losses'][key]) / 2, value, rtol=1e-9, atol=0)
    assert len(one['gradients']) > 20 and one['gradients'].keys() == two[0]['gradients'].keys()
    for result in two:
        for key, value in one['gradients'].items():
            torch.testing.assert_close(result['gradients'][key], value, rtol=1e-7, atol=1e-12)
        for key, value in one['buffers'].items():
            torch.testing.assert_close(result['buffers'][key], value)
    assert bool(one['buffers']) == (name in ('mocov2', 'densecl'))


@pytest.mark.parametrize('scaled', [False, True])
def test_predictor_of_simsiam_keeps_its_rate(image_folder, tmp_path, scaled):
    """mmselfsup's hook restores the rate at the start of an epoch only, and to a number that is not scaled."""
    config = read('simsiam')
    config.merge_from_dict({**NARROW, **PREDICTOR, 'train_cfg.max_epochs': 2})
    config.train_dataloader.dataset.update(
        data_root=str(image_folder), ann_file='images.json', data_prefix=dict(img_path='images/'),
        proposal_file='proposals.npz',
    )  # fmt: skip
    config.train_dataloader.dataset.pipeline[1].transforms[0].size = 64
    config.work_dir, config.log_level = str(tmp_path), 'ERROR'
    config.param_scheduler[0].T_max = 2
    config.auto_scale_lr.enable = scaled
    config.default_hooks.checkpoint = None
    rates = []

    def record(optimizer, args, kwargs):
        rates.append({bool(group.get('fix_lr')): group['lr'] for group in optimizer.param_groups})

    from mmengine.runner import Runner

    from ccop_mm.compat import prepare_config

    prepare_config(config)
    runner = Runner.from_cfg(config)
    original = runner.build_optim_wrapper

    def build(cfg):
        wrapper = original(cfg)
        if not isinstance(cfg, type(wrapper)):
            wrapper.optimizer.register_step_pre_hook(record)
        return wrapper

    runner.build_optim_wrapper = build
    runner.train()
    rate = 0.05 * (2 / 256 if scaled else 1)
    assert len(rates) == 8 and all(row[True] == pytest.approx(rate) for row in rates)
    assert rates[0][False] == pytest.approx(rate) and rates[-1][False] < 0.1 * rate


def test_fixed_rate_without_marked_parameters_is_an_error():
    from types import SimpleNamespace

    from ccop_mm.engine.hooks import FixedRateHook

    wrapper = SimpleNamespace(param_groups=[dict(lr=1.0)])
    with pytest.raises(InputError, match='fix_lr'):
        FixedRateHook().before_train(SimpleNamespace(optim_wrapper=wrapper))


def test_simclr_excludes_normalization_and_biases_from_lars(ranks):
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    config, model = read('simclr'), ranks.build('simclr')
    init_default_scope('mmselfsup')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    excluded = {id(group['params'][0]) for group in groups if group.get('lars_exclude') and not group['weight_decay']}
    adapted = {id(group['params'][0]) for group in groups if not group.get('lars_exclude') and group['weight_decay']}
    for name, parameter in model.named_parameters():
        assert id(parameter) in (adapted if parameter.ndim > 1 else excluded), name


@pytest.mark.parametrize('length, valid', [(8, True), (7, False), ('auto', False)])
def test_queue_of_densecl_must_be_a_multiple_of_the_batch(image_folder, length, valid):
    from ccop_mm.engine.queue_lengths import fit_queues

    config = read('densecl')
    config.train_dataloader.dataset.update(
        data_root=str(image_folder), ann_file='images.json', data_prefix=dict(img_path='images/'),
        proposal_file='proposals.npz',
    )  # fmt: skip
    config.train_dataloader.batch_size, config.model.queue_len = 4, length
    if valid:
        fit_queues(config)
        return
    with pytest.raises(InputError, match=f'DenseCL.*{length}'):
        fit_queues(config)
