import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from synthetic_scenes.scenes import write_scenes

from ccop_mm.engine import ProbeHook
from ccop_mm.engine.launch import train
from ccop_mm.evaluation import extract_object_features, knn_report, measure_pointing_accuracy
from ccop_mm.utils.errors import InputError


@pytest.fixture(scope='module')
def annotated(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_scenes(root, num_train=1, num_val=6, size=(64, 96))
    return dict(ann_file=str(root / 'annotations' / 'instances_val.json'), img_root=str(root / 'images'))


def logged(cfg):
    """Returns the log entries with probe results, by iteration."""
    (file,) = Path(cfg.work_dir).glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row['step']: row for row in rows if any(name.startswith('probe/') for name in row)}


def config(small_config, annotated, work_dir='work', epochs=3, **options):
    hook = dict(type='ProbeHook', size=64, interval=2, ks=(2, 5), **annotated)
    hook.update(options)
    return small_config(
        work_dir=work_dir,
        custom_hooks=[dict(type='SpatialCurriculumHook'), hook],
        train_cfg=dict(max_epochs=epochs),
        randomness=dict(seed=5),
    )


def test_logs_results_of_probes(small_config, annotated):
    cfg = config(small_config, annotated)
    runner = train(cfg)
    rows = logged(cfg)
    assert list(rows) == [0, 8, 12]  # before training, after two epochs of four iterations, at the end
    final = rows[12]
    result = measure_pointing_accuracy(runner.model, annotated['ann_file'], annotated['img_root'], size=64)
    for level, hits in result.hits.items():
        assert final[f'probe/{level}'] == pytest.approx(hits.mean())
    assert final['probe/chance'] == pytest.approx(result.area_fraction.mean())
    for stage, index in (('C4', 2), ('C5', 3)):
        features = extract_object_features(
            runner.model, annotated['ann_file'], annotated['img_root'], size=64, stage=index
        )
        report = knn_report(features, (2, 5))
        assert final[f'probe/knn_{stage}@2'] == pytest.approx(report['backbone@2'])
        assert final['probe/knn_embedding@5'] == pytest.approx(report['embedding@5'])
    assert runner.model.training


@pytest.mark.slow
def test_training_is_not_affected(small_config, annotated):
    with_probe = train(config(small_config, annotated, 'a', probes=('pointing',)))
    without = train(config(small_config, annotated, 'b', interval=99, at_start=False, probes=()))
    for name, value in with_probe.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name


def test_interval_in_iterations_without_probe_at_start(small_config, annotated):
    cfg = config(
        small_config, annotated, epochs=2, by_epoch=False, interval=3, at_start=False, probes=('knn',), stages=('C5',)
    )
    train(cfg)
    rows = logged(cfg)
    assert list(rows) == [3, 6, 8]
    assert set(rows[8]) == {
        *(f'probe/knn_{name}@{k}' for name in ('C5', 'embedding') for k in (2, 5)), 'probe/knn_chance', 'step',
    }  # fmt: skip


def test_same_weights_are_probed_once(small_config, annotated, monkeypatch):
    steps = []
    monkeypatch.setattr(ProbeHook, 'measure', lambda self, runner: steps.append(runner.iter) or {'chance': 0.5})
    train(config(small_config, annotated, epochs=2))
    # The end of the second epoch is also the end of the training.
    assert steps == [0, 8]
    hook = ProbeHook(**annotated)
    hook.before_train(SimpleNamespace(iter=4))  # a resumed run: its weights were probed before
    assert steps == [0, 8]


def test_max_images(small_config, annotated, monkeypatch):
    limits = []
    monkeypatch.setattr(
        'ccop_mm.engine.hooks.probe_hook.measure_pointing_accuracy',
        lambda *args, max_images, **kwargs: limits.append(max_images) or measure_pointing_accuracy(*args, **kwargs),
    )
    train(config(small_config, annotated, epochs=1, at_start=False, max_images=2, probes=('pointing',)))
    assert limits == [2]


def test_invalid_arguments(small_config, annotated):
    with pytest.raises(ValueError, match='probes .*pointing, knn, got tsne'):
        ProbeHook(**annotated, probes=('tsne',))
    with pytest.raises(ValueError, match='interval=0'):
        ProbeHook(**annotated, interval=0)
    with pytest.raises(InputError, match=r'absent\.json'):
        train(config(small_config, dict(annotated, ann_file='absent.json'), at_start=False))


def test_runs_after_checkpoint_hook():
    assert ProbeHook.priority == 'LOWEST'
    assert Hook.priority == 'NORMAL'
