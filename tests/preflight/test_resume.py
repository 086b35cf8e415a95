"""A resumed run is compared with the run that saved its checkpoint: what is refused, carried over and listed."""

import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_transfer import CONFIGS, read_config

from ccop_mm.engine.data_config import tolerate_unreadable_images
from ccop_mm.engine.default_hooks import add_default_hooks
from ccop_mm.preflight.checkpoint import read_checkpoint
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.resume import (
    MAX_LINES,
    SETUP_KEY,
    check_resume,
    proposal_checksums,
    schedule_digest,
)
from ccop_mm.proposals.store import ProposalStore

COSINE = dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, convert_to_iter_based=True)
WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True)


def make_config(folder='data', **options):
    cfg = Config(
        dict(
            model=dict(
                type='CCOP',
                backbone=dict(type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='gone.pth')),
                box_jitter=dict(type='SCSBoxJitter', noise=(0.3, 1.0)),
                queue_len=64,
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=2,
                sampler=dict(type='EpochIndexSampler', shuffle=True),
                dataset=dict(
                    type='ProposalDataset',
                    data_root=str(folder),
                    proposal_file='proposals.npz',
                    pipeline=[dict(type='LoadUnlabeledImage'), dict(type='PackObjectViews')],
                ),
            ),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
            param_scheduler=[COSINE],
            auto_scale_lr=dict(enable=False, base_batch_size=4),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4),
            default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1)),
            custom_hooks=[dict(type='SpatialCurriculumHook'), dict(type='ViewStatisticsHook')],
            randomness=dict(seed=5),
        ),
        format_python_code=False,
    )
    for key, value in options.items():
        if '.' in key:
            cfg.merge_from_dict({key: value})
        else:  # without merging
            cfg[key] = value
    return cfg


def save(path, run_cfg, setup=None, without=(), **meta):
    """Writes a checkpoint of a run after 2 epochs of 8 iterations."""
    content = dict(
        meta=dict(dict(cfg=run_cfg.pretty_text, epoch=2, iter=16, seed=5), **meta),
        state_dict=dict(weight=torch.ones(1)),
        message_hub=dict(runtime_info={} if setup is None else {SETUP_KEY: setup}, log_scalars={}, resumed_keys={}),
        optimizer=dict(state={}, param_groups=[]),
        param_schedulers=[],
    )
    for key in without:
        del content[key]
    torch.save(content, path)
    return str(path)


def check(cfg, path):
    report = Report()
    check_resume(cfg, report, read_checkpoint(str(path), report))
    return report


def keys(findings):
    return [finding.where for finding in findings]


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / 'epoch_2.pth', make_config())


def test_run_without_changes_has_no_findings(saved):
    report = check(make_config(), saved)
    assert report.findings == [] and report.seen == ['resuming after 16 iterations']


@pytest.mark.parametrize(
    'key, value, shown',
    [
        ('train_dataloader.batch_size', 2, ['4', '2']),
        ('train_dataloader.batch_size', 8, ['4', '8']),
        ('train_dataloader.num_batch_per_epoch', 3, ['without it', '3']),
        ('optim_wrapper.accumulative_counts', 4, ['1', '4']),
        ('optim_wrapper.optimizer.type', 'AdamW', ['SGD', 'AdamW']),
        ('optim_wrapper.constructor', 'LearningRateDecayOptimWrapperConstructor', ['without it']),
        ('optim_wrapper.paramwise_cfg', dict(norm_decay_mult=0.0), ['without it', 'norm_decay_mult']),
        ('train_cfg.type', 'IterBasedTrainLoop', ['EpochBasedTrainLoop', 'IterBasedTrainLoop']),
        ('train_cfg.max_epochs', 8, ['4', '8', 'CosineAnnealingLR']),  # T_max is still 4
        ('train_cfg.max_epochs', 3, ['4', '3', 'CosineAnnealingLR']),
        ('train_cfg.max_epochs', 2, ['4', '2']),  # completed already
        ('train_cfg.max_epochs', 1, ['4', '1']),
        ('param_scheduler', [dict(COSINE, T_max=8)], ['CosineAnnealingLR', '8']),  # the training ends at 4
        ('param_scheduler', [dict(COSINE, begin=1)], ['CosineAnnealingLR', '5']),
        ('param_scheduler', [dict(type='OneCycleLR', total_steps=4)], ['OneCycleLR']),
        ('param_scheduler', [WARM_UP, dict(type='MultiStepLR', milestones=[2, 6])], ['MultiStepLR']),
        ('param_scheduler', [dict(type='ReduceOnPlateauLR')], ['ReduceOnPlateauLR']),
    ],
    ids=str,
)
def test_change_of_progress_is_refused(saved, key, value, shown):
    (error,) = check(make_config(**{key: value}), saved).errors
    assert error.where == key
    assert all(text in error.what for text in ['epoch_2.pth', *shown])
    assert f'load_from={saved}' in error.fix and '\n' not in str(error)


@pytest.mark.parametrize(
    'old, new',
    [
        ({}, {'train_cfg.max_epochs': 8, 'param_scheduler': [dict(COSINE, T_max=8)]}),
        ({}, {'train_cfg.max_epochs': 3, 'param_scheduler': [dict(COSINE, T_max=3)]}),
        ({'param_scheduler': []}, {'train_cfg.max_epochs': 8, 'param_scheduler': []}),
        ({'param_scheduler': [WARM_UP]}, {'train_cfg.max_epochs': 8, 'param_scheduler': [WARM_UP]}),
        ({'param_scheduler': [], 'train_cfg.max_epochs': 2}, {}),
        ({}, {'param_scheduler': [WARM_UP, dict(COSINE, begin=1, T_max=3, end=4)]}),
        ({}, {'param_scheduler': [dict(type='CosineAnnealingLR', T_max=32, by_epoch=False)]}),  # 4 epochs of 8
        ({}, {'param_scheduler': [dict(type='MultiStepLR', milestones=[2, 3])]}),
        ({}, {'param_scheduler': [dict(type='PolyLR', power=0.9)]}),
        ({}, {'param_scheduler': None}),
    ],
    ids=str,
)
def test_length_and_schedule_that_fit_are_carried_over(tmp_path, old, new):
    path = save(tmp_path / 'epoch_2.pth', make_config(**old))
    report = check(make_config(**new), path)
    assert report.errors == []
    assert set(keys(report.warnings)) <= {'train_cfg.max_epochs', 'param_scheduler'} and report.warnings
    assert schedule_digest(make_config(**old)) != schedule_digest(make_config(**new))


def test_new_length_names_progress(tmp_path):
    path = save(tmp_path / 'epoch_2.pth', make_config(param_scheduler=[]))
    (warning,) = check(make_config(**{'param_scheduler': [], 'train_cfg.max_epochs': 8}), path).warnings
    assert '25%' in warning.fix and '50%' in warning.fix


def test_iteration_based_length(tmp_path):
    loop = {'train_cfg': dict(type='IterBasedTrainLoop', max_iters=20)}
    steps = dict(type='MultiStepLR', by_epoch=False, begin=0, end=20, milestones=[12])
    old = make_config(**loop, param_scheduler=[steps])
    path = save(tmp_path / 'iter_16.pth', old, epoch=0)
    assert check(old, path).findings == []
    old.train_cfg.max_iters = 30
    assert keys(check(old, path).errors) == ['train_cfg.max_iters']
    old.param_scheduler = [dict(steps, end=30)]
    assert keys(check(old, path).warnings) == ['train_cfg.max_iters', 'param_scheduler']


@pytest.mark.parametrize(
    'key, value, effect',
    [
        ('optim_wrapper.optimizer.lr', 0.05, "checkpoint's value 0.1"),
        ('optim_wrapper.optimizer.weight_decay', 1e-4, 'default'),
        ('auto_scale_lr.enable', True, "checkpoint's value False"),
        ('model.box_jitter.noise', (0.2, 0.8), 'new value [0.2, 0.8]'),
        ('model.momentum', 0.99, 'new value 0.99'),
        ('train_dataloader.dataset.pipeline', [dict(type='LoadUnlabeledImage')], 'new value [LoadUnlabeledImage]'),
        ('train_dataloader.dataset.ann_file', 'other.json', "new value 'other.json'"),
        ('train_dataloader.sampler.type', 'DefaultSampler', "new value 'DefaultSampler'"),
        ('optim_wrapper.clip_grad', dict(max_norm=1.0), "new value {'max_norm': 1.0}"),
        ('default_hooks.checkpoint.interval', 5, 'new value 5'),
    ],
)
def test_other_change_is_listed_with_the_value_that_takes_effect(saved, key, value, effect):
    report = check(make_config(**{key: value}), saved)
    assert report.errors == []
    assert keys(report.warnings) == [key]
    assert effect in report.warnings[0].fix


def test_hook_is_listed_by_name(saved):
    report = check(make_config(custom_hooks=[dict(type='SpatialCurriculumHook')]), saved)
    assert keys(report.findings) == ['custom_hooks.ViewStatisticsHook']
    assert check(make_config(custom_hooks=make_config().custom_hooks[::-1]), saved).findings == []


def test_number_of_lines_is_limited(saved):
    report = check(make_config(**{f'model.option_{number:02}': 1 for number in range(25)}), saved)
    assert len(report.warnings) == MAX_LINES + 1
    assert f'{25 - MAX_LINES} more' in report.warnings[-1].what


@pytest.mark.parametrize(
    'options',
    [
        {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False},
        {'model.backbone.init_cfg': None},
        {'model.type': 'mmselfsup.CCOP'},
        {'model.queue_len': 'auto'},
        {'train_cfg': dict(by_epoch=True, max_epochs=4)},
        {'param_scheduler': COSINE},
        {'default_hooks.finite_loss': dict(type='mmselfsup.FiniteLossHook')},
        {'optim_wrapper.accumulative_counts': 1},
        {'work_dir': 'elsewhere', 'log_level': 'ERROR', 'load_from': 'x.pth', 'resume': True, 'data_root': 'unused'},
    ],
    ids=str,
)
def test_equivalent_config_has_no_findings(saved, options):
    assert check(make_config(**options), saved).findings == []


@pytest.mark.parametrize(
    'path',
    [path for kind in ('*/*.py', '*/*/*.py') for path in sorted(CONFIGS.glob(kind)) if path.parent.name != '_base_'],
    ids=lambda path: path.stem,
)
def test_every_config_resumes_its_own_run(tmp_path, path):
    cfg = read_config(path)
    trained = Config(read_config(path).to_dict(), format_python_code=False)
    for part in ('train', 'val'):  # as a run does
        tolerate_unreadable_images(trained, f'{part}_dataloader', 'redraw')
    if trained.model.get('queue_len') == 'auto':
        trained.model.update(queue_len=64, object_queue_len=512)
    saved = save(tmp_path / 'epoch_2.pth', trained)
    assert check(cfg, saved).findings == []


@pytest.mark.parametrize('missing', ['optimizer', 'param_schedulers'])
def test_checkpoint_without_state_is_refused(tmp_path, missing):
    # mmengine's save_best writes neither of both.
    path = save(tmp_path / 'best_epoch_2.pth', make_config(), without=[missing])
    (error,) = check(make_config(), path).errors
    assert error.where == path and missing in error.what
    if missing == 'param_schedulers':
        path = save(tmp_path / 'constant.pth', make_config(param_scheduler=None), without=[missing])
        assert check(make_config(param_scheduler=None), path).findings == []
        assert keys(check(make_config(), path).findings) == ['param_scheduler'], 'carried over'


def test_exported_weights_are_refused(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), meta=dict(names='ccop')), tmp_path / 'export.pth')
    assert keys(check(make_config(), tmp_path / 'export.pth').errors) == [str(tmp_path / 'export.pth')]


def test_config_in_checkpoint_is_not_executed(tmp_path):
    marker = tmp_path / 'marker'
    for text in (f'open({str(marker)!r}, "w")', f'model = dict(type=open({str(marker)!r}, "w"))', None):
        path = save(tmp_path / 'epoch_2.pth', make_config(), cfg=text)
        report = check(make_config(), path)
        assert report.warnings
        assert not marker.exists()


def test_added_hooks_are_no_change(tmp_path):
    cfg = Config(dict(make_config().to_dict(), default_scope='mmselfsup'))
    for sampler_seed in (None, dict(type='DistSamplerSeedHook')):
        if sampler_seed:
            cfg.default_hooks.sampler_seed = sampler_seed
        path = save(tmp_path / 'epoch_2.pth', cfg)
        completed = Config(cfg.to_dict())
        add_default_hooks(completed)
        assert check(completed, path).findings == []


@pytest.mark.parametrize('name, level', [('epoch_2.pth', 'WARNING'), ('iter_16.pth', 'ERROR')])
def test_length_of_an_epoch_is_inferred_from_complete_epochs_only(tmp_path, name, level):
    """Earlier releases did not store it: iter_16.pth of epoch 2 may belong to epochs of 6 iterations."""
    path = save(tmp_path / name, make_config())
    (finding,) = check(make_config(**{'randomness.seed': 6}), path).findings
    assert (finding.level.value, finding.where) == (level, 'randomness.seed')


@pytest.mark.parametrize(
    'key, value',
    [
        ('train_dataloader.sampler.shuffle', False),
        ('train_dataloader.sampler.type', 'DefaultSampler'),
        ('train_dataloader.batch_sampler', dict(type='AspectRatioBatchSampler')),
        ('train_dataloader.dataset.ann_file', 'other.json'),
        ('train_dataloader.dataset.indices', 10),
        ('train_dataloader.dataset.filter_cfg', dict(min_size=8)),
    ],
)
@pytest.mark.parametrize('iteration, level', [(16, 'WARNING'), (13, 'ERROR')])
def test_other_order_of_images_is_refused_within_an_epoch(tmp_path, key, value, iteration, level):
    path = save(tmp_path / f'iter_{iteration}.pth', make_config(), dict(iterations_per_epoch=8), iter=iteration)
    (finding,) = check(make_config(**{key: value}), path).findings
    assert (finding.level.value, finding.where) == (level, key)


@pytest.mark.parametrize('loop', [dict(by_epoch=False, max_iters=32), dict(type='IterBasedTrainLoop', max_iters=32)])
def test_images_of_an_iteration_based_training_may_be_replaced(tmp_path, loop):
    cfg = make_config()
    cfg.train_cfg = loop
    path = save(tmp_path / 'iter_13.pth', cfg, dict(iterations_per_epoch=8), iter=13)
    cfg.train_dataloader.dataset.ann_file = 'other.json'
    (finding,) = check(cfg, path).findings
    assert (finding.level.value, finding.where) == ('WARNING', 'train_dataloader.dataset.ann_file')
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    assert keys(check(cfg, path).errors) != []


def test_other_order_of_images_in_wrapped_datasets(tmp_path):
    part = make_config().train_dataloader.dataset.to_dict()
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[part, part]))
    cfg = make_config()
    cfg.train_dataloader.dataset = wrapped
    path = save(tmp_path / 'iter_13.pth', cfg, dict(iterations_per_epoch=8), iter=13)
    assert check(cfg, path).findings == []
    key = 'train_dataloader.dataset.dataset.datasets.1.ann_file'
    cfg.train_dataloader.dataset.dataset.datasets[1].ann_file = 'other.json'
    cfg.train_dataloader.dataset.dataset.datasets[1].pipeline = []
    report = check(cfg, path)
    assert keys(report.errors) == [key]
    assert keys(report.warnings) == [key.replace('ann_file', 'pipeline')]


@pytest.mark.parametrize('iteration, level', [(16, 'WARNING'), (13, 'ERROR')])
def test_other_seed_is_refused_in_the_middle_of_an_epoch(tmp_path, iteration, level):
    setup = dict(iterations_per_epoch=8, schedule='')
    path = save(tmp_path / 'epoch_2.pth', make_config(), setup, iter=iteration)
    (finding,) = check(make_config(**{'randomness.seed': 6}), path).findings
    assert (finding.level.value, finding.where) == (level, 'randomness.seed')
    assert '5' in finding.what and '6' in finding.what


@pytest.mark.parametrize(
    'launcher, variable', [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'), ('mpi', 'OMPI_COMM_WORLD_SIZE')]
)
def test_other_number_of_processes_is_refused(tmp_path, monkeypatch, launcher, variable):
    path = save(tmp_path / 'epoch_2.pth', make_config(), dict(world_size=2))
    (error,) = check(make_config(), path).errors
    assert '1' in error.what and '2' in error.what and 'processes' in error.where
    monkeypatch.setenv(variable, '2')
    assert check(make_config(launcher=launcher), path).findings == []
    monkeypatch.setenv(variable, '8')
    assert '8' in check(make_config(launcher=launcher), path).errors[0].what
    monkeypatch.delenv(variable)
    assert check(make_config(launcher=launcher), path).findings == [], 'not known on this machine'


def write_proposals(path, shift=0):
    boxes = np.array([[0, 0, 20, 20 + shift]], dtype=np.float32)
    ProposalStore([(1, '1.png', (64, 64), boxes)]).save(path)


def test_other_proposals_are_refused_by_checksum(tmp_path):
    write_proposals(tmp_path / 'proposals.npz')
    cfg = make_config(tmp_path)
    checksums = proposal_checksums(cfg)
    assert len(checksums) == 1 and len(checksums[0]) == 64
    path = save(tmp_path / 'epoch_2.pth', cfg, dict(proposals=checksums))
    assert check(cfg, path).findings == []
    shutil.copy(tmp_path / 'proposals.npz', tmp_path / 'moved.npz')
    moved = make_config(tmp_path, **{'train_dataloader.dataset.proposal_file': 'moved.npz'})
    assert check(moved, path).findings == [], 'the same proposals in another file'
    write_proposals(tmp_path / 'proposals.npz', shift=1)
    (error,) = check(cfg, path).errors
    assert error.where.endswith('proposal_file') and str(tmp_path / 'proposals.npz') in error.what


def test_proposals_of_older_checkpoint_are_compared_by_name(saved):
    report = check(make_config(**{'train_dataloader.dataset.proposal_file': 'other.npz'}), saved)
    assert report.errors == []
    (warning,) = report.warnings
    assert warning.where.endswith('proposal_file')
    assert 'other.npz' in warning.what and 'proposals.npz' in warning.what


def test_checksum_of_json_and_of_wrapped_datasets(tmp_path):
    (tmp_path / 'a.json').write_text('{}')
    part = dict(type='ProposalDataset', data_root=str(tmp_path), proposal_file='a.json')
    other = dict(part, proposal_file=str(tmp_path / 'absent.npz'))
    dataset = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[part, other]))
    first, second = proposal_checksums(dict(train_dataloader=dict(dataset=dataset)))
    assert len(first) == 64 and second is None
    (tmp_path / 'a.json').write_text('[]')
    assert proposal_checksums(dict(train_dataloader=dict(dataset=part)))[0] != first
