import pytest
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMRunner
from small_detector import detector_config, edit_json, write_dataset
from toy_training import toy_config

from ccop_mm.engine import PreflightHook
from ccop_mm.preflight import PreflightError, Report


class Loop(BaseLoop):
    """A loop that was built."""

    def __init__(self):
        pass

    def run(self):
        pass


class Runner:
    """The attributes of mmengine's runner that the hook reads."""

    def __init__(self, cfg, train=False, test=False):
        self.cfg = cfg
        self._train_loop, self._test_loop = Loop() if train else cfg.train_cfg, Loop() if test else cfg.test_cfg
        self._load_from, self._resume = None, False


@pytest.fixture
def root(tmp_path):
    write_dataset(tmp_path / 'data')
    return tmp_path / 'data'


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmselfsup'])
def test_is_found_in_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(HOOKS.build(dict(type='PreflightHook')), PreflightHook)


def test_valid_run_is_summarized(root, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.preflight.findings.print_log', lambda line, *_: lines.append(line))
    PreflightHook().before_run(Runner(detector_config(root), train=True))
    assert '24 images, 3 classes, 72 boxes' in lines[-1]


@pytest.mark.parametrize(('loop', 'file'), [('train', 'train.json'), ('train', 'val.json'), ('test', 'val.json')])
def test_errors_stop_the_run(root, loop, file):
    edit_json(root / file, lambda content: content['annotations'][0].update(category_id=77))
    with pytest.raises(PreflightError, match=file):
        PreflightHook().before_run(Runner(detector_config(root), **{loop: True}))


def test_a_test_does_not_check_the_training_data(root):
    edit_json(root / 'train.json', lambda content: content['annotations'][0].update(category_id=77))
    PreflightHook().before_run(Runner(detector_config(root), test=True))


def test_validation_alone_is_not_checked(root):
    edit_json(root / 'val.json', lambda content: content['annotations'][0].update(category_id=77))
    PreflightHook().before_run(Runner(detector_config(root)))


@pytest.mark.parametrize('how', ['new', 'resumed', 'resumed from the newest'])
def test_in_a_run(tmp_path, monkeypatch, how):
    settings = dict(experiment_name=f'preflight {how}', custom_hooks=[dict(type='PreflightHook')])
    work_dir = tmp_path / 'work'
    expected = dict(new=None, resumed=str(work_dir / 'epoch_1.pth')).get(how, str(work_dir / 'epoch_2.pth'))
    if how != 'new':
        MMRunner.from_cfg(toy_config(work_dir, experiment_name=f'before {how}')).train()
        settings |= dict(resume=True, load_from=expected if how == 'resumed' else None)
    calls = []
    monkeypatch.setattr('ccop_mm.preflight.check_training', lambda *arguments: calls.append(arguments) or Report())
    runner = MMRunner.from_cfg(toy_config(work_dir, **settings))
    runner.train()
    assert calls == [(runner.cfg, expected)]
