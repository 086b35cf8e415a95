import json
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
from mmselfsup.registry import MODELS
from torch import nn

from ccop_mm.errors import InputError
from ccop_mm.evaluation import PointingResult, load_model, write_pointing_result

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def study():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import transfer_study

        yield transfer_study
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / 'data'
    for name, count in (('train', 80), ('val', 3)):
        (root / name).mkdir(parents=True)
        images = [dict(id=n, file_name=f'{n}.jpg', width=9, height=9) for n in range(count)]
        boxes = [dict(id=n, image_id=n, category_id=1, bbox=[1, 1, 4, 4]) for n in range(count)]
        content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='cat')])
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'{name}.json').write_text(json.dumps(content))
    return root


def test_subsets(study, data, tmp_path):
    one = study.Study(data, tmp_path / 'out', 'small')
    blind = json.loads(one.subset(30, 0, labelled=False).read_text())
    seen = json.loads(one.subset(30, 0, labelled=True).read_text())
    assert blind['annotations'] == [] and blind['images'] == seen['images']
    assert [box['image_id'] for box in seen['annotations']] == [image['id'] for image in seen['images']]
    assert len(seen['images']) == 30
    assert json.loads(one.subset(30, 1, labelled=True).read_text())['images'] != seen['images']


def test_every_method_sees_the_same_photos_and_views(study, data, tmp_path):
    one = study.Study(data, tmp_path / 'out', 'small', epochs=7)
    (tmp_path / 'out' / 'proposals.npz').touch()
    configs = {method: Config.fromfile(one.pretrain_config(method, 3, 7, {})) for method in ('ccop', 'mocov2', 'image')}
    ccop, moco = configs['ccop'], configs['mocov2']
    assert ccop.train_dataloader == moco.train_dataloader
    assert ccop.optim_wrapper == moco.optim_wrapper and ccop.param_scheduler == moco.param_scheduler
    assert ccop.model.backbone == dict(moco.model.backbone, out_indices=(0, 1, 2, 3))
    assert ccop.param_scheduler == [], 'the small setting is the beginning of a longer run'
    assert ccop.train_cfg.max_epochs == 7 and ccop.randomness.seed == 3
    assert moco.model.type == 'MoCo' and moco.model.queue_len == 64 == moco.train_dataloader.batch_size
    assert moco.model.momentum == ccop.model.momentum
    assert configs['image'].train_dataloader.dataset.num_proposals == 0


def test_ablations_leave_out_one_part_each(study, data, tmp_path):
    one = study.Study(data, tmp_path / 'out', 'small')
    (tmp_path / 'out' / 'proposals.npz').touch()
    configs = {method: Config.fromfile(one.pretrain_config(method, 0, 7, {})) for method in ('ccop', *study.ABLATIONS)}
    lengths = dict(queue_len=8, object_queue_len=8)
    models = {method: MODELS.build({**config.model, **lengths}) for method, config in configs.items()}
    for method, changes in study.ABLATIONS.items():  # those of a full-size run, but for the candidates
        full = Config.fromfile(study.ROOT / f'configs/ablations/ccop-{method}_r50_fpn_800e_coco.py').model
        assert all(full[part][key] == value for part, change in changes.items() for key, value in change.items())
    boxes, image = torch.tensor([[3.0, 2.0, 40.0, 30.0], [41.0, 31.0, 79.0, 77.0]]), torch.zeros(2).long()
    for method in study.ABLATIONS:
        changed, ccop = configs[method].to_dict(), configs['ccop'].to_dict()
        (part,) = study.ABLATIONS[method]
        del changed['model'][part], ccop['model'][part]
        assert changed == ccop
    for progress in (0.0, 0.5, 1.0):
        jitter = models['no-noise'].box_jitter
        jitter.progress = progress
        candidates, valid = jitter.jitter(boxes, (80, 80))
        assert valid.all() and torch.allclose(candidates, boxes[:, None])
        jitter = models['no-curriculum'].box_jitter
        jitter.progress = progress
        assert (jitter.zeta, jitter.beta) == (1.0, 0.3)
    same = torch.tensor([[0.6, 0.8]]).repeat(2, 1)  # as alike as two objects of a photo can be
    losses = {method: model.intra_loss(same, boxes, image) for method, model in models.items()}
    assert losses['ccop'] == losses['no-noise'] and losses['ccop'].item() == pytest.approx(0.6)
    assert losses['no-intra'].item() < 1e-6


def test_other_boxes(study, data, tmp_path, monkeypatch):
    one, commands = study.Study(data, tmp_path / 'out', 'small'), {}
    monkeypatch.setattr(one, 'run_tool', lambda title, done, *command: commands.setdefault(done, command))
    found = {}
    for method in ('ccop', *study.BOXES):
        dataset = Config.fromfile(one.pretrain_config(method, 0, 7, {})).train_dataloader.dataset.to_dict()
        file = Path(dataset['proposal_file'])
        options = commands[file][commands[file].index('--skip-bad') + 1 :]
        found[method] = file.name, options, dataset.get('allow_ground_truth', False)
    true = '--method', 'ground-truth', '--annotations', data / 'annotations/train.json'
    assert found == {
        'ccop': ('proposals.npz', (), False),
        'random-boxes': ('proposals-random.npz', ('--method', 'random'), False),
        'true-boxes': ('proposals-ground-truth.npz', true, True),
    }


def test_another_recipe_for_moco(study, data, tmp_path):
    tuned = study.CONFIGS / 'mocov2-tuned_small.py'
    one = study.Study(data, tmp_path / 'out', 'small', moco=tuned)
    (tmp_path / 'out' / 'proposals.npz').touch()
    ccop, moco = (Config.fromfile(one.pretrain_config(method, 0, 7, {})) for method in ('ccop', 'mocov2-time'))
    assert ccop.optim_wrapper.optimizer == dict(moco.optim_wrapper.optimizer, lr=0.08)
    assert (moco.optim_wrapper.optimizer.lr, ccop.param_scheduler) == (0.03, [])
    (schedule,) = moco.param_scheduler
    assert (schedule.type, schedule.by_epoch, schedule.end) == ('LinearLR', False, 90)
    one._lock.close()
    with pytest.raises(InputError, match='another study'):  # the recipe is part of what a folder holds
        study.Study(data, tmp_path / 'out', 'small')


@pytest.mark.parametrize(
    'setting, text, message',
    [
        ('small', None, 'no config file .*other.py'),
        ('small', '_base_ = [', 'other.py cannot be read as a config: SyntaxError'),
        ('small', "_base_ = ['{}/ccop_small.py']", "model.type is not 'MoCo'"),
        (
            'small',
            "_base_ = ['{}/mocov2_small.py']\ntrain_dataloader = dict(batch_size=32)",
            'must be those of',
        ),
        (
            'small',
            "_base_ = ['{}/mocov2_small.py']\nmodel = dict(backbone=dict(depth=34))",
            'must be those of',
        ),
        ('full', "_base_ = ['{}/mocov2-tuned_small.py']", 'must be those of .*ccop_full.*mocov2_full'),
    ],
)
def test_a_moco_that_differs_in_more_than_its_recipe_is_refused(study, data, tmp_path, capsys, setting, text, message):
    other = tmp_path / 'other.py'
    if text:
        other.write_text(text.format(study.CONFIGS) + '\n')
    with pytest.raises(SystemExit):
        study.main([str(data), '--out', str(tmp_path / 'out'), '--setting', setting, '--moco', str(other)])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'schedule, goes_on',
    [
        ("dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9)", True),
        ("dict(type='CosineAnnealingLR')", False),  # T_max would be each run's own length
    ],
)
def test_moco_goes_on_if_its_schedule_does_not_depend_on_the_end(study, data, tmp_path, monkeypatch, schedule, goes_on):
    other = tmp_path / 'other.py'
    other.write_text(f"_base_ = ['{study.CONFIGS}/mocov2_small.py']\nparam_scheduler = [{schedule}]\n")
    one = study.Study(data, tmp_path / 'out', 'small', epochs=5, moco=other)
    monkeypatch.setattr(one, 'step_ratio', lambda: 1.42)
    monkeypatch.setattr(one, 'pretrain_config', lambda *args: tmp_path / 'config.py')
    commands = []
    monkeypatch.setattr(one, 'run_tool', lambda title, done, *command: commands.append(command[-1]))
    one.pretrain('mocov2-time', 0)
    begin = tmp_path / 'out' / 'mocov2-0' / 'epoch_5.pth'
    assert commands == (['--resume', begin] if goes_on else ['--resume'])


def test_the_full_setting_anneals_to_the_end_of_the_run(study, data, tmp_path, monkeypatch):
    one = study.Study(data, tmp_path / 'out', 'full')
    (tmp_path / 'out' / 'proposals.npz').touch()
    one.photos = 128  # a step's
    monkeypatch.setattr(one, 'subset', lambda *args, **options: tmp_path / 'photos.json')
    (schedule,) = Config.fromfile(one.pretrain_config('ccop', 0, 5, {})).param_scheduler
    assert (schedule.type, schedule.T_max, schedule.eta_min) == ('CosineAnnealingLR', 5, 0)


@pytest.mark.parametrize('setting, goes_on', [('small', True), ('full', False)])
def test_moco_of_equal_time_goes_on_where_that_of_equal_photos_ended(
    study, data, tmp_path, monkeypatch, setting, goes_on
):
    one = study.Study(data, tmp_path / 'out', setting, epochs=5)
    (tmp_path / 'out' / 'proposals.npz').touch()
    one.photos, commands = 128, {}
    monkeypatch.setattr(one, 'subset', lambda *args, **options: tmp_path / 'photos.json')
    clock = tmp_path / 'out' / 'clock.json'

    def run_tool(title, done, *command):
        commands[done] = list(command)
        if done == clock:
            clock.write_text('{"ratio": 1.42}')

    monkeypatch.setattr(one, 'run_tool', run_tool)
    checkpoint = one.pretrain('mocov2-time', 0)
    assert commands[clock][1:3] == [tmp_path / 'out' / 'ccop-0.py', tmp_path / 'out' / 'mocov2-0.py']
    assert checkpoint.parts[-2:] == ('mocov2-time-0', 'epoch_8.pth'), '5 epochs * 1.42 = 7.1: not less than CCOP'
    begin = tmp_path / 'out' / 'mocov2-0' / 'epoch_5.pth'
    # A falling learning rate makes the shorter run another one than the beginning of the longer.
    assert commands[checkpoint][-1] == (begin if goes_on else '--resume')
    assert (begin in commands) == goes_on
    checkpoint.parent.mkdir()
    torch.save(dict(meta={}, state_dict={}), checkpoint.with_name('epoch_6.pth'))  # killed after an epoch of its own
    one.pretrain('mocov2-time', 0)
    assert commands[checkpoint][-1] == '--resume'


def test_configs_of_both_settings_build(study):
    for name in study.SETTINGS:
        for method in ('ccop', 'mocov2'):
            model = load_model(study.CONFIGS / f'{method}_{name}.py')
            norms = [norm for norm in model.backbone.modules() if isinstance(norm, nn.BatchNorm2d)]
            assert len(norms) > 15 and all((norm.weight == 1).all() for norm in norms), (
                'no block begins as the identity'
            )


def test_the_full_settings_moco_is_the_baseline(study):
    baseline = Config.fromfile(study.ROOT / 'configs/baselines/mocov2_r50_800e_coco.py').model
    full = Config.fromfile(study.CONFIGS / 'mocov2_full.py').model
    assert dict(full, queue_len=65536, momentum=0.999) == baseline  # those two as small data want them


@pytest.mark.parametrize('method', ['random', 'mocov2', 'ccop'])
def test_detectors_start_from_the_weights_they_should(study, data, tmp_path, monkeypatch, method):
    one = study.Study(data, tmp_path / 'out', 'small')
    checkpoint = None
    if method != 'random':
        torch.manual_seed(1)
        pretrained = load_model(study.CONFIGS / f'{method}_small.py', seed=7)
        checkpoint = tmp_path / 'out' / f'{method}-0' / 'epoch_1.pth'
        checkpoint.parent.mkdir()
        torch.save({'state_dict': pretrained.state_dict()}, checkpoint)
    monkeypatch.setattr(one, 'pretrain', lambda *_: checkpoint)
    config = Config.fromfile(one.detector_config(method, 0, 10))
    assert len(json.loads(Path(config.train_dataloader.dataset.ann_file).read_text())['images']) == 8
    config.default_scope = 'mmdet'
    detector = load_model(config, seed=3)
    assert detector.roi_head.bbox_head.num_classes == 1
    if method == 'random':  # the weights that are probed as random
        norms = [norm for norm in detector.backbone.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert len(norms) > 15 and all((norm.weight == 1).all() for norm in norms)
    same = {
        part: all(
            torch.equal(value, pretrained.state_dict()[f'{part}.{key}'])
            for key, value in detector.get_submodule(part).state_dict().items()
        )
        for part in ('backbone', 'neck')
        if checkpoint and hasattr(pretrained.get_submodule(part), 'lateral_convs' if part == 'neck' else 'conv1')
    }
    assert same == {'random': {}, 'mocov2': {'backbone': True}, 'ccop': {'backbone': True, 'neck': True}}[method]


def test_finished_steps_are_not_run_again(study, data, tmp_path):
    one = study.Study(data, tmp_path / 'out', 'small')
    done = tmp_path / 'out' / 'done.json'
    done.touch()
    one.run_tool('a step', done, 'tools/absent.py')
    assert not (tmp_path / 'out' / 'commands.txt').exists()
    with pytest.raises(InputError, match='failed'):
        one.run_tool('a step', tmp_path / 'out' / 'other.json', 'tools/absent.py')
    assert (tmp_path / 'out' / 'commands.txt').read_text() == 'python tools/absent.py\n'


def test_moco_of_equal_time_waits_for_that_of_equal_photos(study):
    assert study.run_lanes(list(study.METHODS), [0, 1]) == [
        [('ccop', 0)], [('ccop', 1)],
        [('mocov2', 0), ('mocov2-time', 0)], [('mocov2', 1), ('mocov2-time', 1)],
        [('no-noise', 0)], [('no-noise', 1)], [('no-curriculum', 0)], [('no-curriculum', 1)],
        [('no-intra', 0)], [('no-intra', 1)],
        [('random-boxes', 0)], [('random-boxes', 1)], [('true-boxes', 0)], [('true-boxes', 1)],
        [('image', 0)], [('image', 1)], [('random-bn', 0)], [('random-bn', 1)], [('random', 0)], [('random', 1)],
    ]  # fmt: skip
    assert study.run_lanes(['random', 'mocov2-time'], [3]) == [[('mocov2-time', 3)], [('random', 3)]]


def test_side_by_side(study):
    meeting = threading.Barrier(2, timeout=10)

    def meet(number):
        meeting.wait()  # breaks unless two are at work at once
        return number

    assert sorted(study.side_by_side(meet, [3, 1, 2, 0], 2)) == [0, 1, 2, 3]


def test_a_failure_begins_nothing_further(study):
    begun = []

    def work(number):
        begun.append(number)
        if number == 1:
            raise InputError('1 failed')
        time.sleep(0.5)  # busy until the failure has been seen

    with pytest.raises(InputError, match='1 failed'):
        list(study.side_by_side(work, list(range(9)), 2))
    assert len(begun) < 9


def test_what_all_need_is_done_before_anything_goes_side_by_side(study, data, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(study.Study, 'propose', lambda self, kind='selective-search': done.append(kind))
    monkeypatch.setattr(study.Study, 'step_ratio', lambda self: done.append('clock'))

    def probe(self, method, seed):
        done.append((method, seed))
        return study.Outcome(method, seed, tmp_path, {})

    monkeypatch.setattr(study.Study, 'probe', probe)
    one = study.Study(data, tmp_path / 'out', 'small')
    methods = ['random', 'mocov2', 'mocov2-time', 'ccop']
    outcomes = one.probe_all(methods, [5, 4], 2)
    assert [(each.method, each.seed) for each in outcomes] == [(name, seed) for seed in (5, 4) for name in methods]
    assert done[:2] == ['selective-search', 'clock'] and sorted(map(str, done[2:])) == sorted(
        str((name, seed)) for seed in (5, 4) for name in methods
    )
    done.clear()
    one.probe_all(['random'], [0], 1)
    assert done == [('random', 0)], 'random weights need neither proposals nor a clock'
    done.clear()
    one.probe_all(['random', 'random-boxes', 'true-boxes'], [0, 1], 2)
    assert done[:2] == ['random', 'ground-truth'] and len(done) == 8


@pytest.mark.parametrize(('jobs', 'given', 'threads'), [(2, None, '3'), (9, None, '1'), (1, None, None), (2, '5', '5')])
def test_jobs_share_the_threads(study, data, tmp_path, monkeypatch, jobs, given, threads):
    monkeypatch.setenv('OMP_NUM_THREADS', given or '')  # so that it is put back
    if given is None:
        del os.environ['OMP_NUM_THREADS']
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 7)
    seen = []
    monkeypatch.setattr(study.Study, 'probe_all', lambda *args: seen.append(os.environ.get('OMP_NUM_THREADS')) or [])
    monkeypatch.setattr(study, 'write_report', lambda *args: '')
    study.main([str(data), '--out', str(tmp_path / 'out'), '--jobs', str(jobs)])
    assert seen == [threads]


def test_detectors_of_every_method_but_random_bn(study, data, tmp_path, monkeypatch):
    outcomes = [study.Outcome(method, 0, tmp_path, {}) for method in ('random', 'random-bn', 'ccop')]
    monkeypatch.setattr(study.Study, 'probe_all', lambda *args: outcomes)
    monkeypatch.setattr(study.Study, 'detect', lambda self, method, seed, share: Path(f'{method}-{seed}-{share}'))
    tables = []
    monkeypatch.setattr(study, 'write_report', lambda out, found: tables.append([dict(one.ap) for one in found]) or '')
    study.main([str(data), '--out', str(tmp_path / 'out'), '--labels', '10', '100'])
    random, ccop = ({share: Path(f'{method}-0-{share}') for share in (10, 100)} for method in ('random', 'ccop'))
    assert tables[0] == [{}, {}, {}], 'the cheap part first'
    assert len(tables) == 3 and tables[-1] == [random, {}, ccop]


def test_no_jobs_are_refused(study, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main([str(data), '--out', str(tmp_path / 'out'), '--jobs', '0'])
    assert '--jobs must be at least 1, got 0' in capsys.readouterr().err


def test_a_folder_of_another_study_is_refused(study, data, tmp_path, monkeypatch):
    one = study.Study(data, tmp_path / 'out', 'small')
    with pytest.raises(InputError, match='a study is running in'):
        study.Study(data, tmp_path / 'out', 'small')
    one._lock.close()
    with pytest.raises(InputError, match='holds another study'):
        study.Study(data, tmp_path / 'out', 'small', epochs=3)
    other = tmp_path / 'mocov2_small.py'  # as if a config had been edited since
    other.write_text(f"_base_ = ['{study.CONFIGS / 'mocov2_small.py'}']\nmodel = dict(momentum=0.9)\n")
    monkeypatch.setattr(study.Study, 'config', lambda self, method: other)
    with pytest.raises(InputError, match='holds another study'):
        study.Study(data, tmp_path / 'out', 'small')
    monkeypatch.undo()
    with monkeypatch.context() as edited, pytest.raises(InputError, match='holds another study'):
        edited.setitem(study.ABLATIONS, 'no-intra', dict(intra_loss=dict(alpha=0.9)))
        study.Study(data, tmp_path / 'out', 'small')
    with pytest.raises(InputError, match='val does not exist'):
        (data / 'val').rmdir()
        study.Study(data, tmp_path / 'new', 'small')


def outcome(study, folder, method, seed, rate):
    rng = np.random.default_rng(seed)
    count, levels = 60, ('C4', 'P2') if method == 'ccop' else ('C4',)
    result = PointingResult(
        {level: (rng.random(count) < rate).astype(float) for level in levels},
        np.linspace(0.1, 0.3, count), np.ones(count), np.arange(count) // 2, np.arange(count) % 2,
    )  # fmt: skip
    stem = folder / f'{method}{seed}'
    write_pointing_result(result, f'{stem}.json')
    report = {'num_objects': 60, 'num_classes': 2, 'chance': 0.5, 'backbone@10': rate}
    Path(f'{stem}knn.json').write_text(json.dumps(report | ({'embedding@10': rate} if method == 'ccop' else {})))
    Path(f'{stem}ap.json').write_text(json.dumps({'coco/bbox_mAP': rate / 10, 'coco/bbox_mAP_50': rate / 5}))
    cost = dict(epochs=2, steps=20, step_s=0.5) | (dict(ratio=1.75) if method == 'mocov2-time' else {})
    cost |= dict(config='mocov2_odd') if method.startswith('mocov2') else {}
    paths = Path(f'{stem}.json'), {'C4': Path(f'{stem}knn.json')}
    return study.Outcome(method, seed, *paths, cost, {10: Path(f'{stem}ap.json')}), result


def test_report(study, tmp_path):
    made = [
        outcome(study, tmp_path, method, seed, rate)
        for method, rate in (('mocov2', 0.4), ('ccop', 0.7))
        for seed in (0, 1)
    ]
    text = study.write_report(tmp_path, [one for one, _ in made])
    rows = [line.split('|') for line in text.splitlines() if line.startswith('|')]
    ccop = next(row for row in rows if row[1].strip() == 'CCOP')
    means = [result.hits['C4'].mean() for one, result in made if one.method == 'ccop']
    assert ccop[4].split()[0] == f'{100 * np.mean(means):.1f}'
    assert ccop[4].split()[-1] == f'{100 * np.std(means, ddof=1):.1f}'
    gain = np.mean([result.hits['C4'].mean() * (1 if one.method == 'ccop' else -1) for one, result in made]) * 2
    difference = [row for row in rows if row[1].strip() == 'MoCo v2, same photos seen'][1]
    assert difference[2].split()[0] == f'{100 * gain:+.1f}'
    assert difference[3].strip() == '-'  # MoCo has no P2
    assert 'MoCo v2 is by mocov2_odd.' in text
    assert '| CCOP | 7.0 +- 0.0 (14.0 +- 0.0) |' in text
    assert '| CCOP | 70.0 +- 0.0 | 70.0 +- 0.0 |' in text
    (axes,) = sys.modules['study_report'].draw([one for one, _ in made]).axes
    for container, method in zip(axes.containers, ('mocov2', 'ccop'), strict=True):
        pooled = sys.modules['study_report'].pool_seeds([one for one, _ in made])[method].report()
        assert container.lines[0].get_ydata()[0] == pytest.approx(100 * pooled['C4'])
        (low, high) = container.lines[2][0].get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((100 * pooled['C4_low'], 100 * pooled['C4_high']))
    assert (tmp_path / 'results.png').exists() and (tmp_path / 'results.svg').exists()
    assert (tmp_path / 'results.md').read_text() == text
    assert 'Same wall-clock' not in text
    made.append(outcome(study, tmp_path, 'mocov2-time', 0, 0.5))
    text = study.write_report(tmp_path, [one for one, _ in made])
    assert 'Same wall-clock: a CCOP step takes 1.75 times one of MoCo v2' in text
