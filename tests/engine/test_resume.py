import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from toy_training import toy_config

from ccop_mm.engine import launch
from ccop_mm.engine.resume import advance_schedules, set_resume
from ccop_mm.preflight.findings import PreflightError
from ccop_mm.preflight.resume import SETUP_KEY
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError

URL = 'https://host/epoch_1.pth'


def test_none_leaves_config_unchanged():
    cfg = Config(dict(work_dir='work'))
    set_resume(cfg, None)
    assert cfg.to_dict() == dict(work_dir='work')


def test_url_is_set_without_reading_it():
    cfg = Config(dict(work_dir='work'))
    set_resume(cfg, URL)
    assert (cfg.resume, cfg.load_from) == (True, URL)


def test_auto_without_checkpoint_starts_from_scratch(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth'))
    set_resume(cfg, 'auto')
    assert 'resume' not in cfg and cfg.load_from == 'weights.pth'


def test_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r'nothing\.pth') as caught:
        set_resume(Config(dict(work_dir=str(tmp_path))), 'nothing.pth')
    assert str(tmp_path) in str(caught.value), 'the message names the directory with other checkpoints'


def test_damaged_checkpoint(tmp_path):
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(b'not a zip file')
    with pytest.raises(InputError, match=r'damaged\.pth.*BadZipFile') as caught:
        set_resume(Config(dict(work_dir='the_work_dir')), str(damaged))
    assert 'the_work_dir' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('seed, expected', [(None, 11), (7, 7)])
def test_seed_of_checkpoint_is_used_unless_config_sets_one(tmp_path, seed, expected):
    torch.save(dict(meta=dict(seed=11)), tmp_path / 'epoch_1.pth')
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=seed, deterministic=True)))
    set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    assert cfg.randomness == dict(seed=expected, deterministic=True)


@pytest.mark.parametrize('kind', ['CCOPPretrained', 'BackbonePretrained', 'EncoderPretrained'])
def test_resumed_transfer_does_not_require_pre_training_checkpoint(tmp_path, kind):
    init = dict(type=kind, checkpoint='gone.pth')
    cfg = Config(dict(work_dir=str(tmp_path), model=dict(init_cfg=init)))
    set_resume(cfg, 'auto')
    assert cfg.model.init_cfg == init, 'without a checkpoint, training starts from the pre-trained weights'
    set_resume(cfg, URL)
    assert cfg.model.init_cfg is None
    cfg = Config(dict(work_dir=str(tmp_path), model=dict(init_cfg=[dict(type='Normal', layer='Conv2d'), init])))
    set_resume(cfg, URL)
    assert cfg.model.init_cfg is None


def test_config_that_resumes_by_itself_is_treated_like_the_option(tmp_path):
    torch.save(dict(meta=dict(seed=11)), tmp_path / 'epoch_1.pth')
    cfg = Config(dict(work_dir=str(tmp_path), resume=True))
    set_resume(cfg, None)
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth') and cfg.randomness.seed == 11
    cfg = Config(dict(work_dir=str(tmp_path / 'empty'), resume=True))
    set_resume(cfg, None)
    assert not cfg.resume
    cfg = Config(dict(work_dir=str(tmp_path), resume=True, load_from='nothing.pth'))
    with pytest.raises(InputError, match=r'nothing\.pth'):
        set_resume(cfg, None)


LENGTH = 4  # iterations per epoch of small_config: 8 images


@pytest.fixture
def train(small_config):
    """``train(work_dir, resume, **options) -> Runner`` of a run that saves a checkpoint after every epoch."""

    def run(work_dir, resume=None, **options):
        cfg = small_config(work_dir=work_dir)
        cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', interval=1)
        for key, value in options.items():
            if '.' in key:
                cfg.merge_from_dict({key: value})
            else:  # without merging
                cfg[key] = value
        cfg.experiment_name = f'{cfg.work_dir}-{resume}'
        set_resume(cfg, resume)
        return launch.train(cfg)

    return run


def logged(runner, name):
    return runner.message_hub.log_scalars[f'train/{name}'].data[0].tolist()


def schedule(epochs, kind, convert):
    """Returns the schedule of a training of this length: warm-up in the first epoch, then a decay."""
    common = dict(by_epoch=True, convert_to_iter_based=convert)
    decay = dict(
        cosine=dict(type='CosineAnnealingLR', begin=1, T_max=epochs - 1),
        step=dict(type='MultiStepLR', milestones=[epochs - 1], gamma=0.1),
    )[kind]
    return [dict(type='LinearLR', start_factor=0.1, begin=0, end=2, **common), dict(**decay, **common)]


@pytest.mark.slow
@pytest.mark.parametrize('kind, convert', [('cosine', True), ('cosine', False), ('step', True)])
def test_longer_schedule_continues_with_the_values_of_an_uninterrupted_run(train, kind, convert):
    new = {'train_cfg.max_epochs': 4, 'param_scheduler': schedule(4, kind, convert)}
    uninterrupted = train('uninterrupted', **new)
    train('cut', **{'train_cfg.max_epochs': 2, 'param_scheduler': schedule(2, kind, convert)})
    resumed = train('cut', 'auto', **new)
    done = 2 * LENGTH
    for name in ('lr', 'zeta', 'beta'):
        values, expected = logged(resumed, name), logged(uninterrupted, name)
        assert len(values) == len(expected) == 4 * LENGTH
        assert values[done:] == expected[done:]
    assert logged(resumed, 'zeta')[-1] == pytest.approx(0.3 + 0.7 * 15 / 16)
    # Resuming again restores the schedule.
    last = torch.load(Path(resumed.work_dir, 'epoch_4.pth'), weights_only=True)
    Path(resumed.work_dir, 'epoch_4.pth').unlink()
    train('cut', str(Path(resumed.work_dir, 'epoch_3.pth')), **new)
    again = torch.load(Path(resumed.work_dir, 'epoch_4.pth'), weights_only=True)
    assert again['param_schedulers'] == last['param_schedulers']
    assert torch.equal(again['state_dict']['backbone.conv1.weight'], last['state_dict']['backbone.conv1.weight'])


@pytest.mark.slow
def test_constant_schedule_may_be_prolonged(train):
    train('work', **{'train_cfg.max_epochs': 1})
    resumed = train('work', 'auto', **{'train_cfg.max_epochs': 2})
    assert logged(resumed, 'lr') == [0.01] * 2 * LENGTH
    assert logged(resumed, 'zeta')[-1] == pytest.approx(0.3 + 0.7 * 7 / 8)
    assert logged(resumed, 'beta')[-1] == pytest.approx(0.8 - 0.5 * 7 / 8)


@pytest.mark.slow
def test_learning_rate_of_the_checkpoint_takes_effect(train):
    train('work', **{'train_cfg.max_epochs': 1})
    options = {'train_cfg.max_epochs': 2, 'optim_wrapper.optimizer.lr': 0.5, 'optim_wrapper.optimizer.momentum': 0.1}
    resumed = train('work', 'auto', **options)
    assert logged(resumed, 'lr') == [0.01] * 2 * LENGTH
    assert resumed.optim_wrapper.optimizer.param_groups[0]['momentum'] == 0.9


@pytest.mark.slow
def test_changed_run_is_refused_before_the_first_iteration(train, image_folder, tmp_path):
    epochs = {'train_cfg.max_epochs': 2}
    runner = train('work', **epochs)
    path = Path(runner.work_dir, 'epoch_1.pth')
    setup = torch.load(path, weights_only=True)['message_hub']['runtime_info'][SETUP_KEY]
    assert (setup['world_size'], setup['num_images'], setup['iterations_per_epoch']) == (1, 8, LENGTH)
    assert len(setup['proposals'][0]) == 64

    for batch_size in (1, 4):
        with pytest.raises(PreflightError, match=rf'train_dataloader\.batch_size.*{batch_size}.*2'):
            train('other', str(path), **epochs, **{'train_dataloader.batch_size': batch_size})

    changed = tmp_path / 'changed.npz'
    entries = list(ProposalStore.load(image_folder / 'proposals.npz').entries())
    ProposalStore([(*entry[:3], entry[3] + 1) for entry in entries]).save(changed)
    with pytest.raises(PreflightError, match=r'proposal_file.*changed\.npz'):
        train('other', str(path), **epochs, **{'train_dataloader.dataset.proposal_file': str(changed)})

    images = json.loads((image_folder / 'images.json').read_text())['images'][:6]
    (tmp_path / 'fewer.json').write_text(json.dumps(dict(images=images)))
    fewer = {'train_dataloader.dataset.ann_file': str(tmp_path / 'fewer.json')}
    with pytest.raises(InputError, match=r'6 training images.*8'):
        train('other', str(path), **epochs, **fewer)
    checkpoint = torch.load(path, weights_only=True)
    older = tmp_path / 'older' / 'epoch_1.pth'
    older.parent.mkdir()
    del checkpoint['message_hub']['runtime_info'][SETUP_KEY]
    torch.save(checkpoint, older)
    with pytest.raises(InputError, match=r'3 iterations per epoch.*1 epochs of 4'):
        train('other', str(older), **epochs, **fewer)
    assert not list((tmp_path / 'other').glob('*.pth'))
    assert train('other', str(older), **epochs).iter == 2 * LENGTH


@pytest.mark.slow
def test_number_of_images_may_change_if_progress_does_not_depend_on_it(train, image_folder, tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=4)
    checkpoint = {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 2}
    runner = train('work', train_cfg=loop, **checkpoint)
    images = json.loads((image_folder / 'images.json').read_text())['images'][:6]
    (tmp_path / 'fewer.json').write_text(json.dumps(dict(images=images)))
    options = {'train_dataloader.dataset.ann_file': str(tmp_path / 'fewer.json'), **checkpoint}
    resumed = train('other', str(Path(runner.work_dir, 'iter_2.pth')), train_cfg=loop, **options)
    assert logged(resumed, 'zeta') == logged(runner, 'zeta')


@pytest.mark.slow
def test_tool_exits_with_one_line(train, tmp_path):
    train('work')
    tool = Path(__file__).parents[2] / 'tools' / 'train.py'
    command = [sys.executable, str(tool), str(tmp_path / 'small.py'), '--work-dir', str(tmp_path / 'work'), '--resume']
    done = subprocess.run(
        [*command, '--cfg-options', 'train_dataloader.batch_size=4', 'train_cfg.max_epochs=2'],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('ERROR')]
    assert 'train_dataloader.batch_size' in line and 'epoch_1.pth' in line
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'iteration, epoch',
    [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (5, 2), (6, 2), (6, 3), (9, 4)],  # two iterations per epoch
)
@pytest.mark.parametrize('is_dict', [False, True])
def test_schedules_are_advanced_to_an_iteration(tmp_path, iteration, epoch, is_dict):
    """Compared with the closed forms of the schedules. After the last iteration, an epoch may not have ended yet."""
    linear = dict(type='LinearLR', start_factor=0.2, by_epoch=False, begin=0, end=5)
    step = dict(type='StepLR', step_size=2, gamma=0.5, by_epoch=True)
    cosine = dict(type='CosineAnnealingMomentum', T_max=20, eta_min=0.1, by_epoch=False)
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.4, momentum=0.9))
    schedules = [linear, step, cosine]
    runner = Runner.from_cfg(
        toy_config(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=10), param_scheduler=schedules)
    )
    runner.optim_wrapper = runner.build_optim_wrapper(optimizer)
    if is_dict:
        runner.optim_wrapper = OptimWrapperDict(first=runner.optim_wrapper)
        runner.cfg.param_scheduler = dict(first=schedules)
    loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.param_schedulers = runner.build_param_scheduler(copy.deepcopy(runner.cfg.param_scheduler))
    assert len(runner.train_dataloader) == 2
    loop._iter, loop._epoch = iteration, epoch
    (group,) = runner.optim_wrapper['first'].param_groups if is_dict else runner.optim_wrapper.param_groups
    group['lr'], group['momentum'] = 7.0, 7.0  # restored from a checkpoint, of another schedule
    for _ in range(2):  # advancing again changes nothing
        advance_schedules(runner)
        factor = 0.2 + 0.8 * min(iteration, 4) / 4  # iterations 0 to 4 are the warm-up
        assert group['lr'] == pytest.approx(0.4 * factor * 0.5 ** (epoch // 2), rel=1e-9)
        assert group['momentum'] == pytest.approx(0.1 + 0.4 * (1 + math.cos(math.pi * iteration / 20)), rel=1e-9)
        found = runner.param_schedulers['first'] if is_dict else runner.param_schedulers
        assert [schedule.last_step for schedule in found] == [min(iteration, 4), epoch, iteration]
