import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from synthetic_scenes.scenes import write_scenes

from ccop_mm.engine.hooks.frozen_detector_hook import FrozenDetectorHook
from ccop_mm.engine.launch import train
from ccop_mm.evaluation.frozen_detector import measure_frozen_detector, read_frozen_detector_data
from ccop_mm.evaluation.frozen_detector_head import HeadRecipe
from ccop_mm.utils.errors import InputError


@pytest.fixture(scope='module')
def annotated(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_scenes(root, num_train=6, num_val=4, size=(64, 96))
    files = {f'{name}ann_file': str(root / f'annotations/instances_{split}.json') for name, split in SPLITS}
    return files | {f'{name}img_root': str(root / 'images') for name, _ in SPLITS}


SPLITS = (('train_', 'train'), ('', 'val'))


def logged(cfg):
    """Returns the log entries with AP, by iteration."""
    (file,) = Path(cfg.work_dir).glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row['step']: row for row in rows if any(name.startswith('frozen_detector/') for name in row)}


def config(small_config, annotated, work_dir='work', epochs=3, **options):
    hook = dict(type='mmselfsup.FrozenDetectorHook', size=64, interval=2, epochs=1, **annotated)
    hook.update(options)
    return small_config(
        work_dir=work_dir,
        default_hooks=dict(frozen_detector=hook),
        train_cfg=dict(max_epochs=epochs),
        randomness=dict(seed=5),
    )


def test_logs_ap_of_the_current_weights(small_config, annotated):
    cfg = config(small_config, annotated, tasks=('objects', 'classes'), seed=3)
    runner = train(cfg)
    rows = logged(cfg)
    assert list(rows) == [0, 8, 12]  # before training, after two epochs of four iterations, at the end
    names = [f'frozen_detector/{prefix}{name}' for prefix in ('', 'class_') for name in ('AP', 'AP50', 'AP75')]
    assert set(rows[12]) == {*names, 'step'}
    data = read_frozen_detector_data(
        *(annotated[f'{name}{key}'] for name, _ in SPLITS for key in ('ann_file', 'img_root'))
    )
    recipe = HeadRecipe(epochs=1, min_steps=0)
    expected = measure_frozen_detector(runner.model, data, size=64, seeds=(3,), recipe=recipe)
    for task, prefix in (('objects', ''), ('classes', 'class_')):
        for name, values in expected.metrics[task].items():
            assert rows[12][f'frozen_detector/{prefix}{name}'] == pytest.approx(values[0])
    assert runner.model.training


@pytest.mark.slow
def test_training_is_not_affected(small_config, annotated):
    with_probe = train(config(small_config, annotated, 'a', interval=1))
    cfg = config(small_config, annotated, 'b')
    del cfg.default_hooks.frozen_detector
    without = train(cfg)
    assert logged(cfg) == {}
    for name, value in with_probe.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name


def test_interval_in_iterations_without_measuring_at_the_start(small_config, annotated):
    cfg = config(small_config, annotated, epochs=2, by_epoch=False, interval=3, at_start=False)
    train(cfg)
    rows = logged(cfg)
    assert list(rows) == [3, 6, 8]
    assert set(rows[8]) == {'frozen_detector/AP', 'frozen_detector/AP50', 'frozen_detector/AP75', 'step'}


def test_same_weights_are_measured_once(small_config, annotated, monkeypatch):
    steps = []
    monkeypatch.setattr(FrozenDetectorHook, 'measure', lambda self, runner: steps.append(runner.iter) or {'AP': 0.5})
    train(config(small_config, annotated, epochs=2))
    assert steps == [0, 8]  # the end of the second epoch is also the end of the training
    FrozenDetectorHook(**annotated).before_train(SimpleNamespace(iter=4))  # a resumed run
    assert steps == [0, 8]


def test_limits(small_config, annotated, monkeypatch):
    seen = []
    monkeypatch.setattr(
        'ccop_mm.engine.hooks.frozen_detector_hook.measure_frozen_detector',
        lambda model, data, **settings: (
            seen.append((len(data.train_images), len(data.images), settings)) or SimpleNamespace(metrics={})
        ),
    )
    train(config(small_config, annotated, epochs=1, at_start=False, max_train_images=3, max_images=2, max_memory=1.5))
    ((num_train, num_val, settings),) = seen
    assert (num_train, num_val) == (3, 2)
    assert settings == dict(
        size=64,
        features='backbone',
        tasks=('objects',),
        seeds=(0,),
        recipe=HeadRecipe(epochs=1, min_steps=0),
        flip=True,
        max_memory=1.5,
        batch_size=32,
    )


def test_invalid_arguments(small_config, annotated):
    for option, value in (
        (dict(tasks=('masks',)), 'masks'),
        (dict(tasks=()), 'none'),
        (dict(features='head'), 'head'),
        (dict(interval=0), 'interval=0'),
        (dict(size=0), 'size=0'),
        (dict(epochs=0), '0'),
    ):
        with pytest.raises(ValueError, match=value):
            FrozenDetectorHook(**annotated, **option)
    with pytest.raises(InputError, match=r'absent\.json'):  # before the first iteration
        train(config(small_config, dict(annotated, ann_file='absent.json'), at_start=False))


def test_runs_after_checkpoint_hook():
    assert FrozenDetectorHook.priority == 'LOWEST'
    assert Hook.priority == 'NORMAL'
