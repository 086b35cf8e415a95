"""The course of a study: plan, resumption, failures, and what is checked before a run starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from stub_worker import stub_metrics

from ccop_mm.label_efficiency import pool, run_study
from ccop_mm.utils.errors import InputError
from ccop_mm.weights import read_state_dict

HELPERS = Path(__file__).parents[1] / 'helpers'


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Replaces the worker by a stub; returns a function that lists the runs started since the last call."""
    log = tmp_path / 'started.txt'
    log.touch()
    monkeypatch.setattr(pool, 'WORKER', 'stub_worker')
    monkeypatch.setenv('PYTHONPATH', str(HELPERS))
    monkeypatch.setenv('STUB_LOG', str(log))

    def names():
        lines = log.read_text().split()
        log.write_text('')
        return lines

    return names


@pytest.fixture
def study(study_data, tmp_path):
    """``study(**changes)`` runs a study of random weights of two names."""

    def run(**changes):
        arguments = dict(
            detector_config=study_data / 'detector.py',
            weights=['random', 'other=random'],
            out=tmp_path / 'out',
            num_images=[5, 10],
            seeds=[0, 1],
            lr_factors=[0.5, 1, 2],
            iterations=[30],
        )
        return run_study(**{**arguments, **changes})

    return run


@pytest.fixture
def ccop(study_data):
    """Checkpoint with the backbone and the neck of the detector."""
    cfg = Config.fromfile(study_data / 'detector.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
    state = {key: value for key, value in detector.state_dict().items() if key.startswith(('backbone.', 'neck.'))}
    torch.save(dict(state_dict=state), study_data / 'ccop.pth')
    return study_data / 'ccop.pth'


def test_all_runs_of_a_study(study, started, tmp_path):
    result = study(jobs=2)
    names = started()
    search = {f'{name}-{n}-rate-x{f}-seed0' for name in ('random', 'other') for n in (5, 10) for f in ('0.5', '1', '2')}
    finals = {f'{name}-{n}-final-x1-seed{s}' for name in ('random', 'other') for n in (5, 10) for s in (0, 1)}
    assert len(names) == len(search) + len(finals) and set(names) == search | finals
    assert set(names[: len(search)]) == search  # all rates are chosen before the final runs
    assert {rate.factor for rate in result.chosen.values()} == {1.0} and len(result.chosen) == 4
    assert not any(rate.edge for rate in result.chosen.values())
    for name in ('random', 'other'):
        for count in (5, 10):
            expected = {s: stub_metrics(f'{name}-{count}-final-x1-seed{s}')['AP'] for s in (0, 1)}
            assert result.values('AP', name, count) == expected
    assert not result.failed and str(result) == (tmp_path / 'out/results.md').read_text().strip()
    assert (tmp_path / 'out/results.png').stat().st_size > 10_000


def test_training_images(study, started, tmp_path):
    """Final subsets are nested in each seed; those of the choice exclude the selection split."""
    study()
    contents = {path.stem: json.loads(path.read_text()) for path in (tmp_path / 'out/data').iterdir()}
    images = {name: {image['id'] for image in content['images']} for name, content in contents.items()}
    assert set(images) == {'selection', 'val', *(f'final-{n}-seed{s}' for n in (5, 10) for s in (0, 1))} | {
        'rate-5-seed0',
        'rate-10-seed0',
    }
    assert len(images['selection']) == 4 and len(images['val']) == 6
    for seed in (0, 1):
        assert (
            images[f'final-5-seed{seed}'] < images[f'final-10-seed{seed}'] and len(images[f'final-5-seed{seed}']) == 5
        )
    for count in (5, 10):
        assert len(images[f'rate-{count}-seed0']) == count and not images[f'rate-{count}-seed0'] & images['selection']
    search = Config.fromfile(tmp_path / 'out/runs/random-5-rate-x1-seed0/config.py')
    final = Config.fromfile(tmp_path / 'out/runs/random-5-final-x1-seed1/config.py')
    assert Path(search.test_evaluator.ann_file).name == 'selection.json'
    assert Path(final.test_evaluator.ann_file).name == 'val.json'
    assert Path(final.train_dataloader.dataset.ann_file).name == 'final-5-seed1.json'


def test_choice_for_all_images_uses_those_outside_the_selection_split(study, started, tmp_path):
    study(num_images=(), shares=[100], seeds=[0], lr_factors=[1, 2])
    rate, final = (json.loads((tmp_path / f'out/data/{kind}-20-seed0.json').read_text()) for kind in ('rate', 'final'))
    assert (len(rate['images']), len(final['images'])) == (16, 20)


def test_finished_runs_are_not_repeated(study, started):
    first = study()
    started()
    assert str(study()) == str(first) and started() == []


def test_seeds_and_weights_can_be_added(study, started):
    study(seeds=[0], weights=['random'])
    started()
    study()
    names = started()
    assert 'random-5-final-x1-seed0' not in names and 'random-5-rate-x1-seed0' not in names
    assert {'random-5-final-x1-seed1', 'other-5-final-x1-seed0', 'other-5-rate-x2-seed0'} <= set(names)


def test_another_length_repeats_the_runs(study, started, tmp_path):
    study(lr_factors=[1], seeds=[0], num_images=[5])
    assert len(started()) == 2
    study(lr_factors=[1], seeds=[0], num_images=[5], iterations=[31])
    assert len(started()) == 2


def test_one_length_per_share(study, started, tmp_path):
    study(num_images=[10, 5], iterations=[20, 40], lr_factors=[1])
    for count, length in ((10, 20), (5, 40)):
        cfg = Config.fromfile(tmp_path / f'out/runs/random-{count}-final-x1-seed0/config.py')
        assert cfg.train_cfg.max_iters == length


@pytest.mark.slow
def test_a_killed_study_continues(study_data, tmp_path, started, study):
    """Finished runs are kept, and the one that was running is repeated from its start."""
    out = tmp_path / 'out'
    code = f"""
from ccop_mm.label_efficiency import pool, run_study
pool.WORKER = 'stub_worker'
run_study({str(study_data / 'detector.py')!r}, ['random', 'other=random'], {str(out)!r}, num_images=[5, 10],
          seeds=[0, 1], lr_factors=[0.5, 1, 2], iterations=[30])
"""
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(HELPERS), *filter(None, sys.path)]),
        'STUB_WAIT': 'other-5-rate-x1',
    }
    # In the background of a shell SIGINT is ignored, also by children.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, '-c', code], env=environment, start_new_session=True)
    signal.signal(signal.SIGINT, previous)
    waiting = out / 'runs/other-5-rate-x1-seed0/log.txt'
    deadline = time.monotonic() + 120
    while not waiting.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)
    finally:
        process.kill()
    finished = started()
    assert finished[-1] == 'other-5-rate-x1-seed0' and len(finished) > 1
    (waiting.parent / 'work_dir').mkdir()
    (waiting.parent / 'work_dir/iter_7.pth').touch()
    study()
    names = started()
    assert names[0] == 'other-5-rate-x1-seed0' and not set(names) & set(finished[:-1])
    assert not (waiting.parent / 'work_dir/iter_7.pth').exists()


def test_failed_runs_are_left_out(study, started, monkeypatch, tmp_path):
    monkeypatch.setenv('STUB_FAIL', 'other-5-final')
    result = study()
    assert [run.name for run, _ in result.failed] == ['other-5-final-x1-seed0', 'other-5-final-x1-seed1']
    assert 'on purpose' in Path(result.failed[0][1]).read_text()
    assert result.values('AP', 'other', 5) == {} and len(result.values('AP', 'other', 10)) == 2
    assert str(tmp_path / 'out/runs/other-5-final-x1-seed0/log.txt') in str(result)
    monkeypatch.delenv('STUB_FAIL')
    started()
    assert study().failed == []
    assert started() == ['other-5-final-x1-seed0', 'other-5-final-x1-seed1']


def test_weights_without_a_learning_rate_are_not_measured(study, started, monkeypatch):
    monkeypatch.setenv('STUB_FAIL', 'other-5-rate')
    result = study(num_images=[5])
    assert set(result.chosen) == {('random', 5)} and len(result.failed) == 3
    assert all(not name.startswith('other-5-final') for name in started())


def test_edges_are_extended_once(study, started):
    result = study(num_images=[5], lr_factors=[2, 4], seeds=[0], extend=True)
    assert {'random-5-rate-x1-seed0', 'other-5-rate-x1-seed0'} < set(started())
    chosen = result.chosen['random', 5]
    assert (chosen.factor, chosen.edge) == (1.0, 'lowest') and len(chosen.values) == 3


def test_a_single_factor_needs_no_choice(study, started):
    result = study(lr_factors=[2], num_images=[5], seeds=[0])
    assert sorted(started()) == ['other-5-final-x2-seed0', 'random-5-final-x2-seed0']
    assert not result.chosen['random', 5].metric


def test_weights_of_files(study, started, ccop, tmp_path):
    state = {**read_state_dict(ccop), 'bbox_head.conv_cls.weight': torch.zeros(3)}
    torch.save(dict(state_dict=state), tmp_path / 'detector.pth')
    files = dict(ccop=ccop, detector=tmp_path / 'detector.pth')
    study(weights=[f'{name}={path}' for name, path in files.items()], num_images=[5], seeds=[0], lr_factors=[1])
    for name, initializer in dict(ccop='CCOPPretrained', detector='EncoderPretrained').items():
        cfg = Config.fromfile(tmp_path / f'out/runs/{name}-5-final-x1-seed0/config.py')
        assert cfg.model.init_cfg == dict(type=initializer, checkpoint=str(files[name]))


def test_other_requests_in_the_same_folder_are_refused(study, started, ccop, study_data, tmp_path):
    arguments = dict(num_images=[5], seeds=[0], lr_factors=[1], weights=['random', f'ccop={ccop}'])
    study(**arguments)
    assert started()
    torch.save(dict(state_dict=read_state_dict(ccop), extra=1), tmp_path / 'same.pth')
    for changes, named in (
        (dict(class_agnostic=True), '--class-agnostic'),
        (dict(options={'optim_wrapper.optimizer.lr': 0.5}), '--cfg-options'),
        (dict(weights=['ccop=random']), 'weights ccop'),
        (dict(weights=[f'ccop={tmp_path / "same.pth"}']), 'weights ccop'),
    ):
        with pytest.raises(InputError, match=named):
            study(**{**arguments, **changes})
    path = study_data / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='training data'):
        study(**arguments)
    assert started() == []


def test_a_study_without_runs_is_replaced(study, started, study_data, ccop, tmp_path):
    with pytest.raises(InputError, match='weights ccop'):
        path = tmp_path / 'unknown.pth'
        torch.save(dict(state_dict={'some.weight': torch.zeros(3)}), path)
        study(weights=['random', f'ccop={path}'])
    result = study(weights=['random', f'ccop={ccop}'], class_agnostic=True, num_images=[5], seeds=[0], lr_factors=[1])
    assert len(result.finished) == 2
    subset = json.loads((tmp_path / 'out/data/final-5-seed0.json').read_text())
    assert [category['name'] for category in subset['categories']] == ['object']


def test_files_from_elsewhere_are_not_overwritten(study, started, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/results.json').write_text('{}')
    with pytest.raises(InputError, match=r'results\.json'):
        study()


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        (dict(weights=[]), '--weights'),
        (dict(weights=['imagenet=init_cfg']), 'init_cfg'),
        (dict(seeds=[]), 'seeds'),
        (dict(seeds=[1, 1]), 'seeds'),
        (dict(seeds=[-1]), '-1'),
        (dict(lr_factors=[0]), '0'),
        (dict(num_images=[21]), '21'),
        (dict(iterations=[1]), '1'),
        (dict(iterations=[10, 20, 30]), '3 numbers for 2'),
        (dict(jobs=0), '0'),
        (dict(annotations='a.json'), '--val-annotations'),
        (dict(detector_config='absent.py'), 'absent.py'),
        (dict(options={'model.backbone.depth': 17}), '17'),
    ],
)
def test_invalid_arguments(changes, named, study, started, tmp_path):
    with pytest.raises(InputError, match=named) as caught:
        study(**changes)
    assert '\n' not in str(caught.value)
    assert started() == [] and not (tmp_path / 'out/results.json').exists()


def test_weights_that_do_not_fit(study, started, ccop, tmp_path):
    state = read_state_dict(ccop)
    key = 'neck.lateral_convs.0.conv.weight'
    torch.save(dict(state_dict={**state, key: state[key][:5]}), tmp_path / 'other.pth')
    torch.save(dict(state_dict={'some.weight': torch.zeros(3)}), tmp_path / 'unknown.pth')
    for name in ('other', 'unknown'):
        with pytest.raises(InputError, match=f'weights wrong: .*{name}.pth'):
            study(weights=['random', f'wrong={tmp_path / name}.pth'])
    assert started() == []


def test_subset_without_boxes(study, started, study_data):
    path = study_data / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    annotated = content['images'][0]['id']
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] == annotated]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='no box'):
        study()
    assert started() == []


def test_validation_images_must_not_be_trained_on(study, started, study_data):
    train, val = (study_data / f'annotations/instances_{part}.json' for part in ('train', 'val'))
    content = json.loads(train.read_text())
    shared = json.loads(val.read_text())['images'][0]['file_name']
    content['images'][3]['file_name'] = shared
    train.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f'1 images .*{shared}'):
        study()
    assert started() == []


def test_missing_images_are_found_before_a_run_starts(study, started, study_data):
    for path in (study_data / 'images').iterdir():
        path.unlink()
    with pytest.raises(InputError, match='images'):
        study()
    assert started() == []


def test_dry_run(study, started, tmp_path):
    result = study(dry_run=True)
    text = str(result)
    assert '12 + 8 runs' in text and '5 images (25 %): 30 iterations' in text and 'rates      0.005, 0.01, 0.02' in text
    assert '20 training images, of which 4 ' in text and '6 to measure AP' in text
    assert started() == [] and not (tmp_path / 'out/results.json').exists()


@pytest.mark.slow
def test_training_from_end_to_end(study_data, tmp_path, ccop):
    """Two initial weights and two learning rates, of which the one that is much too high is not chosen."""
    out = tmp_path / 'out'
    result = run_study(
        study_data / 'detector.py',
        ['random', f'ccop={ccop}'],
        out,
        num_images=[8],
        seeds=[0],
        lr_factors=[1, 1e9],
        iterations=[12],
        class_agnostic=True,
        jobs=2,
    )
    assert result.failed == []
    assert {rate.factor for rate in result.chosen.values()} == {1.0}
    assert len(result.finished) == 6
    assert any(each.diverged for each in result.finished if each.run.factor == 1e9)
    assert not any(each.diverged for each in result.finished if each.run.factor == 1)
    for path in (out / 'runs').iterdir():
        assert not list(path.rglob('*.pth')) and not list(path.rglob('detections*'))
        assert Config.fromfile(path / 'config.py').load_from is None  # mmengine's copy names the tested checkpoint
    log = (out / 'runs/ccop-8-final-x1-seed0/log.txt').read_text()
    assert 'CCOPPretrained' in log and 'Iter(train) [12/12]' in log
    metrics = result.values('AP50', 'ccop', 8)[0]
    assert json.loads((out / 'runs/ccop-8-final-x1-seed0/metrics.json').read_text())['metrics']['AP50'] == metrics
