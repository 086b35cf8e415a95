import json
import math
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from mmselfsup.registry import MODELS
from torch import nn

from ccop_mm.evaluation import PointingResult, load_model, write_pointing_result
from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'studies' / 'configs'
SPLITS = ('train', 'val')


@pytest.fixture(scope='module')
def study():
    sys.path.insert(0, str(ROOT / 'studies'))
    try:
        import transfer_study

        yield transfer_study
    finally:
        sys.path.remove(str(ROOT / 'studies'))


@pytest.fixture
def runs(study):
    return sys.modules['study_runs']


@pytest.fixture
def methods(study):
    return sys.modules['study_methods']


@pytest.fixture
def data(tmp_path):
    """An annotated dataset without image files: 80 training and 3 validation images with one box each."""
    root = tmp_path / 'data'
    for name, count in (('train', 80), ('val', 3)):
        (root / name).mkdir(parents=True)
        images = [dict(id=n, file_name=f'{n}.jpg', width=9, height=9) for n in range(count)]
        boxes = [dict(id=n, image_id=n, category_id=1, bbox=[1, 1, 4, 4]) for n in range(count)]
        content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='cat')])
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'{name}.json').write_text(json.dumps(content))
    return root


@pytest.fixture
def small(study, data, tmp_path):
    """A study of the small setting whose proposals exist."""
    small = study.Study(data, tmp_path / 'out', 'small')
    for name in ('proposals', 'proposals-random', 'proposals-ground-truth'):
        (tmp_path / 'out' / f'{name}.npz').touch()
    return small


def test_subsets(study, data, tmp_path):
    small = study.Study(data, tmp_path / 'out', 'small')
    unlabeled = json.loads(small.subset(30, 0, labeled=False).read_text())
    labeled = json.loads(small.subset(30, 0, labeled=True).read_text())
    assert unlabeled['annotations'] == [] and unlabeled['images'] == labeled['images']
    assert [box['image_id'] for box in labeled['annotations']] == [image['id'] for image in labeled['images']]
    assert len(labeled['images']) == 30
    assert json.loads(small.subset(30, 1, labeled=True).read_text())['images'] != labeled['images']
    ids = [
        {image['id'] for image in json.loads(small.labels(share, 0).read_text())['images']} for share in (1, 10, 100)
    ]
    assert ids[0] < ids[1] < ids[2] and list(map(len, ids)) == [1, 8, 80]


def test_every_method_trains_on_the_same_images_and_views(study, data, tmp_path):
    small = study.Study(data, tmp_path / 'out', 'small', epochs=7)
    (tmp_path / 'out' / 'proposals.npz').touch()
    ccop, moco = (Config.fromfile(small.pretrain_config(method, 3, 7, {})) for method in ('ccop', 'mocov2'))
    assert ccop.train_dataloader == moco.train_dataloader
    assert ccop.optim_wrapper == moco.optim_wrapper and ccop.param_scheduler == moco.param_scheduler
    assert ccop.model.backbone == dict(moco.model.backbone, out_indices=(0, 1, 2, 3))
    assert ccop.param_scheduler == [], 'the small setting is the start of a longer run'
    assert ccop.train_cfg.max_epochs == 7 and ccop.randomness.seed == 3
    assert moco.model.type == 'MoCo' and moco.model.queue_len == 64 == moco.train_dataloader.batch_size
    assert moco.model.momentum == ccop.model.momentum


def settings_in(config, settings):
    """The values in ``config`` of all keys of ``settings``."""
    return {
        key: settings_in(config[key], value) if isinstance(value, dict) else config[key]
        for key, value in settings.items()
    }


def without(config, settings):
    """``config`` without the keys of ``settings``."""
    return {
        key: without(value, settings[key]) if isinstance(settings.get(key), dict) else value
        for key, value in config.items()
        if key not in settings or isinstance(settings[key], dict)
    }


def test_ablations_apply_the_settings_of_their_config_files(methods, small):

    def run_config(method):
        config = Config.fromfile(small.pretrain_config(method, 0, 7, {})).to_dict()
        del config['train_dataloader']['dataset']['proposal_file']  # the study generates the proposals
        return config

    ccop = run_config('ccop')
    assert set(methods.ABLATIONS) >= {'no-noise', 'no-curriculum', 'no-intra', 'random-boxes', 'ground-truth-boxes'}
    for method in methods.ABLATIONS:
        changes = methods.read_ablation(method)
        full = Config.fromfile(ROOT / f'configs/ablations/ccop-{method}_r50_fpn_800e_coco.py')
        assert settings_in(full, changes) == changes, 'mmengine reads the same values'
        changes.get('train_dataloader', {}).get('dataset', {}).pop('proposal_file', None)
        changed = run_config(method)
        assert settings_in(changed, changes) == changes
        assert without(changed, changes) == without(ccop, changes), 'nothing else changes'


def test_ablations_leave_out_one_part_each(study, small):
    boxes, image = torch.tensor([[3.0, 2.0, 40.0, 30.0], [41.0, 31.0, 79.0, 77.0]]), torch.zeros(2).long()

    def build(method):
        config = Config.fromfile(small.pretrain_config(method, 0, 7, {}))
        return MODELS.build({**config.model, 'queue_len': 8, 'object_queue_len': 8})

    names = ('ccop', 'no-noise', 'no-curriculum', 'no-intra', 'no-image', 'no-object')
    models = {method: build(method) for method in names}
    for progress in (0.0, 0.5, 1.0):
        jitter = models['no-noise'].box_jitter
        jitter.progress = progress
        candidates, valid = jitter.jitter(boxes, (80, 80))
        assert valid.all() and torch.allclose(candidates, boxes[:, None])
        jitter = models['no-curriculum'].box_jitter
        jitter.progress = progress
        assert (jitter.zeta, jitter.beta) == (1.0, 0.3)
    same = torch.tensor([[0.6, 0.8]]).repeat(2, 1)  # the maximum similarity of two objects
    losses = {method: model.intra_loss(same, boxes, image) for method, model in models.items()}
    assert losses['ccop'] == losses['no-noise'] and losses['ccop'].item() == pytest.approx(0.6)
    assert losses['no-intra'].item() == losses['no-object'].item() == 0
    keys = torch.nn.functional.normalize(torch.eye(2, 8), dim=0)
    image_losses = {method: model.image_head(same, same, keys).item() for method, model in models.items()}
    assert image_losses['no-image'] == 0 < image_losses['ccop'] == image_losses['no-object']
    object_losses = {method: model.object_head(same, same, keys).item() for method, model in models.items()}
    assert object_losses['no-object'] == 0 < object_losses['ccop'] == object_losses['no-image']


def test_proposals_of_other_boxes(study, data, tmp_path, monkeypatch):
    small, commands = study.Study(data, tmp_path / 'out', 'small'), {}
    monkeypatch.setattr(small, 'run_tool', lambda title, output, *command: commands.setdefault(output, command))
    proposals = {}
    for method in ('ccop', 'random-boxes', 'ground-truth-boxes'):
        dataset = Config.fromfile(small.pretrain_config(method, 0, 7, {})).train_dataloader.dataset.to_dict()
        file = Path(dataset['proposal_file'])
        options = commands[file][commands[file].index('--skip-bad') + 1 :]
        proposals[method] = file.name, options, dataset.get('allow_ground_truth', False)
    ground_truth = '--method', 'ground-truth', '--annotations', data / 'annotations/train.json'
    assert proposals == {
        'ccop': ('proposals.npz', (), False),
        'random-boxes': ('proposals-random.npz', ('--method', 'random'), False),
        'ground-truth-boxes': ('proposals-ground-truth.npz', ground_truth, True),
    }


def test_former_method_names_are_accepted(study):
    args = study.parse_args(['DATA', '--out', 'OUT', '--methods', 'random', 'true-boxes', 'image'])
    assert args.methods == ['random', 'ground-truth-boxes', 'no-object']


def test_moco_with_another_recipe(study, data, tmp_path):
    tuned = CONFIGS / 'mocov2-tuned_small.py'
    small = study.Study(data, tmp_path / 'out', 'small', moco=tuned)
    (tmp_path / 'out' / 'proposals.npz').touch()
    ccop, moco = (Config.fromfile(small.pretrain_config(method, 0, 7, {})) for method in ('ccop', 'mocov2-time'))
    assert ccop.optim_wrapper.optimizer == dict(moco.optim_wrapper.optimizer, lr=0.08)
    assert (moco.optim_wrapper.optimizer.lr, ccop.param_scheduler) == (0.03, [])
    (schedule,) = moco.param_scheduler
    assert (schedule.type, schedule.by_epoch, schedule.end) == ('LinearLR', False, 90)
    small._lock.close()
    with pytest.raises(InputError, match=str(tmp_path / 'out')):  # the folder belongs to another recipe
        study.Study(data, tmp_path / 'out', 'small')


@pytest.mark.parametrize(
    'setting, text, values',
    [
        ('small', None, []),
        ('small', '_base_ = [', ['SyntaxError']),
        ('small', "_base_ = ['{}/ccop_small.py']", ['MoCo']),
        (
            'small',
            "_base_ = ['{}/mocov2_small.py']\ntrain_dataloader = dict(batch_size=32)",
            ['ccop_small.py', 'mocov2_small.py'],
        ),
        (
            'small',
            "_base_ = ['{}/mocov2_small.py']\nmodel = dict(backbone=dict(depth=34))",
            ['ccop_small.py', 'mocov2_small.py'],
        ),
        ('full', "_base_ = ['{}/mocov2-tuned_small.py']", ['ccop_full.py', 'mocov2_full.py']),
    ],
)
def test_incomparable_moco_is_rejected(study, data, tmp_path, capsys, setting, text, values):
    other = tmp_path / 'other.py'
    if text:
        other.write_text(text.format(CONFIGS) + '\n')
    with pytest.raises(SystemExit):
        study.main([str(data), '--out', str(tmp_path / 'out'), '--setting', setting, '--moco', str(other)])
    message = capsys.readouterr().err
    assert all(value in message for value in ['other.py', *values]), message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'name, text', [('mocov2_small.py', ''), ('ccop_small.py', 'model = dict(backbone=dict(depth=34))')]
)
def test_incomparable_ccop_is_rejected(study, data, tmp_path, name, text):
    other = tmp_path / 'other.py'
    other.write_text(f"_base_ = ['{CONFIGS / name}']\n{text}\n")
    with pytest.raises(InputError, match=r'--ccop .*other\.py.*'):
        study.Study(data, tmp_path / 'out', 'small', ccop=other)


@pytest.mark.parametrize(
    'schedule, continues',
    [
        ("dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9)", True),
        ("dict(type='CosineAnnealingLR')", False),  # T_max would be the length of each run
    ],
)
def test_moco_continues_only_if_its_schedule_is_independent_of_the_run_length(
    study, data, tmp_path, monkeypatch, schedule, continues
):
    other = tmp_path / 'other.py'
    other.write_text(f"_base_ = ['{CONFIGS}/mocov2_small.py']\nparam_scheduler = [{schedule}]\n")
    small = study.Study(data, tmp_path / 'out', 'small', epochs=5, moco=other)
    monkeypatch.setattr(small, 'step_ratio', lambda: 1.42)
    monkeypatch.setattr(small, 'pretrain_config', lambda *args: tmp_path / 'config.py')
    commands = []
    monkeypatch.setattr(small, 'run_tool', lambda title, output, *command: commands.append(command[-1]))
    small.pretrain('mocov2-time', 0)
    shorter = tmp_path / 'out' / 'mocov2-0' / 'epoch_5.pth'
    assert commands == (['--resume', shorter] if continues else ['--resume'])


@pytest.mark.parametrize(
    'name, ccop, anneal, warmup',
    [('full', None, None, 0), ('small', None, True, 0), ('small', 'ccop-warmup_small.py', True, 90)],
)
def test_learning_rate_is_annealed_until_the_end_of_the_run(
    study, data, tmp_path, monkeypatch, name, ccop, anneal, warmup
):
    instance = study.Study(data, tmp_path / 'out', name, ccop=CONFIGS / ccop if ccop else None, anneal=anneal)
    (tmp_path / 'out' / 'proposals.npz').touch()
    monkeypatch.setattr(instance, 'subset', lambda *args, **options: tmp_path / 'images.json')
    config = Config.fromfile(instance.base_config('ccop'))
    batch_size, rate = config.train_dataloader.batch_size, config.optim_wrapper.optimizer.lr
    instance.num_images = 100 * batch_size
    config = Config.fromfile(instance.pretrain_config('ccop', 0, 5, {}))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedules = [PARAM_SCHEDULERS.build({**part, 'optimizer': optimizer}) for part in config.param_scheduler]
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    expected = [rate * (1 + math.cos(math.pi * (n - warmup) / (500 - warmup))) / 2 for n in range(warmup, 500)]
    assert rates[warmup:] == pytest.approx(expected, abs=1e-9)
    assert rates[:warmup] == pytest.approx(
        [rate * (0.02 + 0.98 * n / max(warmup - 1, 1)) for n in range(warmup)], rel=1e-6
    )


@pytest.mark.parametrize('setting, continues', [('small', True), ('full', False)])
def test_moco_with_equal_time_continues_the_run_with_equal_images(
    study, data, tmp_path, monkeypatch, setting, continues
):
    instance = study.Study(data, tmp_path / 'out', setting, epochs=5)
    (tmp_path / 'out' / 'proposals.npz').touch()
    instance.num_images, commands = 128, {}
    monkeypatch.setattr(instance, 'subset', lambda *args, **options: tmp_path / 'images.json')
    clock = tmp_path / 'out' / 'clock.json'

    def run_tool(title, output, *command):
        commands[output] = list(command)
        if output == clock:
            clock.write_text('{"ratio": 1.42}')

    monkeypatch.setattr(instance, 'run_tool', run_tool)
    checkpoint = instance.pretrain('mocov2-time', 0)
    assert commands[clock][1:3] == [tmp_path / 'out' / 'ccop-0.py', tmp_path / 'out' / 'mocov2-0.py']
    assert checkpoint.parts[-2:] == ('mocov2-time-0', 'epoch_8.pth'), '5 epochs * 1.42 = 7.1, rounded up'
    shorter = tmp_path / 'out' / 'mocov2-0' / 'epoch_5.pth'
    # With annealing the shorter run is not the start of the longer one.
    assert commands[checkpoint][-1] == (shorter if continues else '--resume')
    assert (shorter in commands) == continues
    checkpoint.parent.mkdir()
    torch.save(dict(meta={}, state_dict={}), checkpoint.with_name('epoch_6.pth'))  # interrupted after its first epoch
    instance.pretrain('mocov2-time', 0)
    assert commands[checkpoint][-1] == '--resume'


def test_configs_of_both_settings_build(study):
    for name in study.SETTINGS:
        for method in ('ccop', 'mocov2'):
            model = load_model(CONFIGS / f'{method}_{name}.py')
            norms = [norm for norm in model.backbone.modules() if isinstance(norm, nn.BatchNorm2d)]
            assert len(norms) > 15 and all((norm.weight == 1).all() for norm in norms), 'no zero-init residual'


def test_moco_of_the_full_setting_is_the_baseline():
    baseline = Config.fromfile(ROOT / 'configs/baselines/mocov2_r50_800e_coco.py').model
    full = Config.fromfile(CONFIGS / 'mocov2_full.py').model
    assert dict(full, queue_len=65536, momentum=0.999) == baseline  # these two depend on the size of the dataset


def test_detectors_start_from_the_weights_of_their_seed(study, data, tmp_path, monkeypatch):
    small = study.Study(data, tmp_path / 'out', 'small')
    epochs = {'random': None, 'mocov2': 12, 'ccop': 9}
    trained = []

    def pretrain(method, seed):
        trained.append((method, seed))
        return Path(f'/elsewhere/{method}-{seed}/epoch_{epochs[method]}.pth') if epochs[method] else None

    calls = []
    monkeypatch.setattr(small, 'pretrain', pretrain)
    monkeypatch.setattr(small, 'run_tool', lambda *arguments, **options: calls.append((arguments, options)))
    report = small.compare_detectors(list(epochs), [4, 7], [5, 10], 2)
    assert sorted(trained) == sorted((method, seed) for method in epochs for seed in (4, 7))
    ((_, output, *command), options), = calls  # fmt: skip
    assert output == report and options == dict(again=True)
    words = list(map(str, command))
    assert words[:2] == ['tools/analysis_tools/label_efficiency.py', str(CONFIGS / 'fcos_small.py')]
    start = words.index('--weights') + 1
    out = tmp_path / 'out'
    assert words[start : words.index('--out')] == [
        'random',
        f'mocov2={out}/mocov2-{{seed}}/epoch_12.pth',
        f'ccop={out}/ccop-{{seed}}/epoch_9.pth',
    ]
    for option, values in (('--shares', ['5', '10']), ('--seeds', ['4', '7']), ('--iterations', ['300'])):
        position = words.index(option) + 1
        assert words[position : position + len(values)] == values
    assert '--class-agnostic' in words


@pytest.mark.parametrize('name', ['small', 'full'])
def test_detectors_of_both_settings_can_be_read_by_the_tool(study, voc_animals, name):
    from ccop_mm.label_efficiency.annotations import AnnotationFile
    from ccop_mm.label_efficiency.detector import read_study_detector

    setting = study.SETTINGS[name]
    files = [AnnotationFile(str(voc_animals / f'annotations/{part}.json'), str(voc_animals / part)) for part in SPLITS]
    detector = read_study_detector(CONFIGS / setting.detector, tuple(files), setting.class_agnostic, None)
    assert len(detector.train.image_ids) == 2881 and len(detector.val.image_ids) == 727


def test_completed_steps_are_not_repeated(study, data, tmp_path):
    small = study.Study(data, tmp_path / 'out', 'small')
    output = tmp_path / 'out' / 'done.json'
    output.touch()
    small.run_tool('a step', output, 'tools/absent.py')
    assert not (tmp_path / 'out' / 'commands.txt').exists()
    with pytest.raises(InputError, match='a step'):
        small.run_tool('a step', output, 'tools/absent.py', again=True)
    (tmp_path / 'out' / 'commands.txt').unlink()
    with pytest.raises(InputError, match='a step'):
        small.run_tool('a step', tmp_path / 'out' / 'other.json', 'tools/absent.py')
    assert (tmp_path / 'out' / 'commands.txt').read_text() == 'python tools/absent.py\n'


def test_sequences(study):
    sequences = study.independent_sequences(list(study.METHODS), [0, 1])
    assert sequences[:4] == [
        [('ccop', 0)], [('ccop', 1)],
        [('mocov2', 0), ('mocov2-time', 0)], [('mocov2', 1), ('mocov2-time', 1)],
    ]  # fmt: skip
    assert sequences[-2:] == [[('random', 0)], [('random', 1)]]
    assert sorted(run for sequence in sequences for run in sequence) == sorted(
        (method, seed) for method in study.METHODS for seed in (0, 1)
    )
    assert all(len(sequence) == 1 for sequence in sequences[4:])
    assert study.independent_sequences(['random', 'mocov2-time'], [3]) == [[('mocov2-time', 3)], [('random', 3)]]


def test_items_run_in_parallel(study):
    barrier = threading.Barrier(2, timeout=10)

    def wait_for_another(number):
        barrier.wait()  # raises unless two items run at the same time
        return number

    assert sorted(study.run_parallel(wait_for_another, [3, 1, 2, 0], 2)) == [0, 1, 2, 3]


def test_failure_cancels_pending_items(study):
    started = []

    def work(number):
        started.append(number)
        if number == 1:
            raise InputError('1 failed')
        time.sleep(0.5)  # until the failure has been noticed

    with pytest.raises(InputError, match='1 failed'):
        list(study.run_parallel(work, list(range(9)), 2))
    assert len(started) < 9


def test_shared_inputs_are_made_before_parallel_runs(study, data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(study.Study, 'propose', lambda self, kind='selective-search': calls.append(kind))
    monkeypatch.setattr(study.Study, 'step_ratio', lambda self: calls.append('clock'))

    def probe(self, method, seed):
        calls.append((method, seed))
        return study.RunResult(method, seed, tmp_path, {})

    monkeypatch.setattr(study.Study, 'probe', probe)
    small = study.Study(data, tmp_path / 'out', 'small')
    methods = ['random', 'mocov2', 'mocov2-time', 'ccop']
    results = study.probe_all(small, methods, [5, 4], 2)
    assert [(each.method, each.seed) for each in results] == [(name, seed) for seed in (5, 4) for name in methods]
    assert calls[:2] == ['selective-search', 'clock'] and sorted(map(str, calls[2:])) == sorted(
        str((name, seed)) for seed in (5, 4) for name in methods
    )
    calls.clear()
    study.probe_all(small, ['random'], [0], 1)
    assert calls == [('random', 0)], 'random weights need neither proposals nor step times'
    calls.clear()
    study.probe_all(small, ['random', 'random-boxes', 'ground-truth-boxes'], [0, 1], 2)
    assert calls[:2] == ['random', 'ground-truth'] and len(calls) == 8


@pytest.mark.parametrize(('jobs', 'given', 'threads'), [(2, None, '3'), (9, None, '1'), (1, None, None), (2, '5', '5')])
def test_jobs_share_the_threads(study, data, tmp_path, monkeypatch, jobs, given, threads):
    monkeypatch.setenv('OMP_NUM_THREADS', given or '')  # restored after the test
    if given is None:
        del os.environ['OMP_NUM_THREADS']
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 7)
    seen = []
    monkeypatch.setattr(study, 'probe_all', lambda *args: seen.append(os.environ.get('OMP_NUM_THREADS')) or [])
    monkeypatch.setattr(study, 'write_report', lambda *args: '')
    study.main([str(data), '--out', str(tmp_path / 'out'), '--jobs', str(jobs)])
    assert seen == [threads]


def test_every_method_but_random_bn_is_fine_tuned(study, data, tmp_path, monkeypatch):
    results = [study.RunResult(method, 0, tmp_path, {}) for method in ('random', 'random-bn', 'ccop')]
    monkeypatch.setattr(study, 'probe_all', lambda *args: results)
    calls, reports = [], []
    monkeypatch.setattr(study.Study, 'compare_detectors', lambda self, *args: calls.append(args) or tmp_path / 'table')
    monkeypatch.setattr(study, 'write_report', lambda out, found, *table: reports.append(table) or '')
    methods = ['--methods', 'random', 'random-bn', 'ccop', '--seeds', '0', '3', '--labels', '10', '100', '--jobs', '2']
    study.main([str(data), '--out', str(tmp_path / 'out'), *methods])
    assert calls == [(['random', 'ccop'], [0, 3], [10, 100], 2)]
    assert reports == [(), (tmp_path / 'table',)], 'the probes are reported first'


def test_frozen_detector_of_every_method_and_share(study, data, tmp_path, monkeypatch):
    small = study.Study(data, tmp_path / 'out', 'small')
    monkeypatch.setattr(
        study.Study, 'pretrain', lambda self, method, seed: None if method == 'random' else Path(method)
    )
    commands = {}
    monkeypatch.setattr(small, 'run_tool', lambda title, output, *command: commands.setdefault(output, command))
    results = {method: small.freeze(method, 3, 10, ('backbone', 'neck')) for method in ('random', 'mocov2', 'ccop')}
    assert {method: set(paths) for method, paths in results.items()} == {
        'random': {'backbone', 'neck'},
        'mocov2': {'backbone'},
        'ccop': {'backbone', 'neck'},
    }
    assert len(commands) == 5
    command = list(map(str, commands[results['ccop']['neck']]))
    assert command[:3] == ['tools/analysis_tools/frozen_detector.py', str(tmp_path / 'out' / 'ccop-3.py'), 'ccop']
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert len(json.loads(Path(options['--train-annotations']).read_text())['images']) == 8
    expected = {'--features': 'neck', '--seeds': '3', '--size': '128', '--json': str(results['ccop']['neck'])}
    assert options.items() >= expected.items()
    assert str(commands[results['random']['neck']][1]) == str(CONFIGS / 'ccop_small.py')


def test_frozen_detectors_are_reported_after_the_other_probes(study, data, tmp_path, monkeypatch):
    results = [study.RunResult(method, 0, tmp_path, {}) for method in ('random', 'ccop')]
    monkeypatch.setattr(study, 'probe_all', lambda *args: results)
    monkeypatch.setattr(
        study.Study, 'freeze', lambda self, method, seed, share, features: {'backbone': Path(method, str(share))}
    )
    tables = []
    monkeypatch.setattr(study, 'write_report', lambda out, all: tables.append([dict(one.frozen) for one in all]) or '')
    study.main([str(data), '--out', str(tmp_path / 'out'), '--frozen', '10', '100'])
    random, ccop = (
        {share: {'backbone': Path(method, str(share))} for share in (10, 100)} for method in ('random', 'ccop')
    )
    assert tables == [[{}, {}], [random, {}], [random, ccop]]


def write_frozen(path, values):
    metrics = {task: {name: [value] for name, value in row.items()} for task, row in values.items()}
    path.write_text(json.dumps(dict(settings=dict(levels=['C3', 'C4']), seeds=[0], metrics=metrics)))
    return {'backbone': path}


def test_frozen_table(study, methods, tmp_path):
    rng, results, values = np.random.default_rng(0), [], {}
    for method in ('random', 'ccop'):
        for seed in (0, 1, 2):
            row = {
                task: dict(zip(('AP', 'AP50', 'AP75'), rng.random(3), strict=True)) for task in ('objects', 'classes')
            }
            values[method, seed] = row
            result = study.RunResult(method, seed, tmp_path, {})
            result.frozen = {10: write_frozen(tmp_path / f'{method}-{seed}.json', row)}
            results.append(result)
    report = sys.modules['study_report']
    assert report.frozen_table(results, 'neck') == ''
    table = report.frozen_table(results, 'backbone')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines() if line.startswith('|')]
    assert rows[0][2:] == [f'{task} {name}' for task in ('objects', 'classes') for name in ('AP', 'AP50', 'AP75')]
    random, ccop = ([values[method, seed]['objects']['AP50'] for seed in (0, 1, 2)] for method in ('random', 'ccop'))
    gains = np.subtract(ccop, random)
    quantile = 4.302652729911275  # two-sided 95 % of Student's t with 2 degrees of freedom
    for row, label, numbers, sign in (
        (rows[2], methods.METHODS['random'].title, random, ''),
        (rows[3], methods.METHODS['ccop'].title, ccop, ''),
        (rows[4], f'CCOP minus {methods.METHODS["random"].title}', gains, '+'),
    ):
        half_width = quantile * np.std(numbers, ddof=1) / 3**0.5
        assert row[:2] == ['10 %', label]
        assert row[3] == f'{100 * np.mean(numbers):{sign}.1f} ± {100 * half_width:.1f}'
    results[-1].frozen = {}  # unfinished: the difference is that of the other seeds
    partial = report.frozen_table(results, 'backbone').splitlines()[-1].split('|')[4].strip()
    assert partial.startswith(f'{100 * np.mean(gains[:2]):+.1f} ±')


def test_invalid_number_of_jobs(study, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main([str(data), '--out', str(tmp_path / 'out'), '--jobs', '0'])
    assert re.search(r'--jobs\b.*\b0\b', capsys.readouterr().err)


@pytest.mark.slow
def test_folder_of_another_study_is_rejected(study, runs, data, tmp_path, monkeypatch):
    out = str(tmp_path / 'out')
    small = study.Study(data, tmp_path / 'out', 'small')
    with pytest.raises(InputError, match=out):  # locked
        study.Study(data, tmp_path / 'out', 'small')
    small._lock.close()
    study.Study(data, tmp_path / 'out', 'small')._lock.close()
    with pytest.raises(InputError, match=rf'{out}.*"epochs": 12'):
        study.Study(data, tmp_path / 'out', 'small', epochs=3)
    edited = tmp_path / 'mocov2_small.py'  # as if a config had been edited since
    edited.write_text(f"_base_ = ['{CONFIGS / 'mocov2_small.py'}']\nmodel = dict(momentum=0.9)\n")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf'{out}.*"configs"'):
        patch.setattr(study.Study, 'base_config', lambda self, method: edited)
        study.Study(data, tmp_path / 'out', 'small')
    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf'{out}.*"configs"'):
        patch.setattr(runs, 'read_ablation', lambda name: dict(model=dict(intra_loss=dict(alpha=0.9))))
        study.Study(data, tmp_path / 'out', 'small')
    with pytest.raises(InputError, match=str(data / 'val')):
        (data / 'val').rmdir()
        study.Study(data, tmp_path / 'new', 'small')


def make_result(study, folder, method, seed, rate):
    """A run's result files with random hits, and its PointingResult."""
    rng = np.random.default_rng(seed)
    count, levels = 60, ('C4', 'P2') if method == 'ccop' else ('C4',)
    pointing = PointingResult(
        {level: (rng.random(count) < rate).astype(float) for level in levels},
        np.linspace(0.1, 0.3, count), np.ones(count), np.arange(count) // 2, np.arange(count) % 2,
    )  # fmt: skip
    stem = folder / f'{method}{seed}'
    write_pointing_result(pointing, f'{stem}.json')
    report = {'num_objects': 60, 'num_classes': 2, 'chance': 0.5, 'backbone@10': rate}
    Path(f'{stem}knn.json').write_text(json.dumps(report | ({'embedding@10': rate} if method == 'ccop' else {})))
    cost = dict(epochs=2, steps=20, step_s=0.5) | (dict(ratio=1.75) if method == 'mocov2-time' else {})
    cost |= dict(config='mocov2_odd') if method.startswith('mocov2') else {}
    paths = Path(f'{stem}.json'), {'C4': Path(f'{stem}knn.json')}
    return study.RunResult(method, seed, *paths, cost), pointing


def test_report(study, methods, tmp_path):
    made = [
        make_result(study, tmp_path, method, seed, rate)
        for method, rate in (('mocov2', 0.4), ('ccop', 0.7))
        for seed in (0, 1)
    ]
    results = [result for result, _ in made]
    (tmp_path / 'detectors.md').write_text('| ccop | 7.0 ± 0.1 |\n')
    text = study.write_report(tmp_path, results, tmp_path / 'detectors.md')
    rows = [[cell.strip() for cell in line.split('|')] for line in text.splitlines() if line.startswith('|')]
    ccop = next(row for row in rows if row[1] == methods.METHODS['ccop'].title)
    means = [pointing.hits['C4'].mean() for result, pointing in made if result.method == 'ccop']
    assert ccop[4].split()[0] == f'{100 * np.mean(means):.1f}'
    assert ccop[4].split()[-1] == f'{100 * np.std(means, ddof=1):.1f}'
    signs = [1 if result.method == 'ccop' else -1 for result in results]
    gain = np.mean([sign * pointing.hits['C4'].mean() for sign, (_, pointing) in zip(signs, made, strict=True)]) * 2
    difference = [row for row in rows if row[1] == methods.METHODS['mocov2'].title][1]
    assert difference[2].split()[0] == f'{100 * gain:+.1f}'
    assert difference[3] == '-'  # MoCo has no P2
    assert 'mocov2_odd' in text
    assert text.endswith('\n\n| ccop | 7.0 ± 0.1 |\n')
    assert '| CCOP | 70.0 +- 0.0 | 70.0 +- 0.0 |' in text
    report = sys.modules['study_report']
    reports = {method: pointing.report() for method, pointing in report.pool_seeds(results).items()}
    (axes,) = report.plot_pointing(reports).axes
    for container, method in zip(axes.containers, ('mocov2', 'ccop'), strict=True):
        pooled = reports[method]
        assert container.lines[0].get_ydata()[0] == pytest.approx(100 * pooled['C4'])
        (low, high) = container.lines[2][0].get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((100 * pooled['C4_low'], 100 * pooled['C4_high']))
    assert (tmp_path / 'results.png').exists() and (tmp_path / 'results.svg').exists()
    assert (tmp_path / 'results.md').read_text() == text
    assert '1.75' not in text
    made.append(make_result(study, tmp_path, 'mocov2-time', 0, 0.5))
    text = study.write_report(tmp_path, [result for result, _ in made])
    assert '1.75' in text, 'the step time ratio'
