"""Faults of a config, and configs without faults."""

import copy
import functools
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from ccop_mm.engine.default_hooks import add_default_hooks
from ccop_mm.preflight import Report
from ccop_mm.preflight import config as checks
from ccop_mm.utils.config_file import read_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))
RUNNABLE = [
    # Reading the configs of mmdet takes long.
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if 'transfer' in path.parts else ())
    for path in CONFIGS
    if path.parent.name != '_base_'
]
PAPER = ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py'
DETECTOR = ROOT / 'configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_random_1x_coco.py'
MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'

#: Where mmdet's own configs contain faults: running them fails.
MMDET_FAULTS = {
    'train_cfg.by_epoch',  # with a type
    'val_evaluator.eval_mode',  # VOCMetric's, in a config that replaces it by CocoMetric
    'test_evaluator.eval_mode',
    'test_evaluator.type',  # MOTChallengeMetrics
    'model.neck.force_grad_on_level',  # FPN has no such argument
    'optimizer_config',  # of mmdet 2
}


def find(check, cfg, *args):
    report = Report()
    check(cfg, *args, report)
    return report


def the_error(report):
    (finding,) = report.errors
    return finding


def lines(findings):
    return [str(finding) for finding in findings]


read_once = functools.cache(read_config)


@pytest.fixture
def paper():
    return copy.deepcopy(read_once(PAPER))


@pytest.fixture
def detector():
    return copy.deepcopy(read_once(DETECTOR))


@pytest.mark.parametrize('path', RUNNABLE)
def test_configs_of_the_project_have_no_finding(path, monkeypatch):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cuda')
    report = Report()
    checks.check_config(read_config(path), report)
    assert not report.findings


@pytest.mark.slow
def test_configs_of_mmdet_have_no_finding():
    paths = sorted(path for path in MMDET_CONFIGS.rglob('*.py') if '_base_' not in path.parts)[::12]
    assert len(paths) > 40
    checked = 0
    for path in paths:
        try:
            cfg = Config.fromfile(path)
        except Exception:  # needs a project or a library that is not installed
            continue
        checked += 1
        findings = [
            finding
            for check in (checks.check_keys, checks.check_values)
            for finding in find(check, cfg).findings
            if finding.where not in MMDET_FAULTS and 'package that is not installed' not in finding.what
        ]
        assert not lines(findings), path
    assert checked > 40


@pytest.mark.parametrize(
    ('key', 'value', 'known'),
    [
        ('optim_wraper', dict(optimizer=dict(type='SGD', lr=0.1)), 'optim_wrapper'),
        ('train_dataloder', dict(batch_size=2), 'train_dataloader'),
        ('custom_hook', [dict(type='CompileHook')], 'custom_hooks'),
        ('load_form', 'weights.pth', 'load_from'),
        ('param_schedulers', [], 'param_scheduler'),
    ],
)
def test_misspelt_top_level_key(paper, key, value, known):
    paper[key] = value
    (finding,) = find(checks.check_keys, paper).errors
    assert finding.where == key and finding.fix.startswith(f'rename it to {known},')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('base_optim_wrapper', dict(type='OptimWrapper')),
        ('custom_hooks_of_stage2', []),
        ('models', ['a', 'b']),
        ('dataset_type', 'CocoDataset'),
        ('data_root', 'data/coco/'),
        ('train_pipeline', []),
        ('backend_args', None),
        ('albu_train_transforms', []),
        ('classes', ('a', 'b')),
        ('max_iters', 10),
    ],
)
def test_variables_of_a_config_file_are_no_misspelt_keys(paper, key, value):
    paper[key] = value
    assert not find(checks.check_keys, paper).findings


def test_variable_that_a_key_was_copied_from_is_no_misspelt_key(paper):
    paper.custom_hook = paper.custom_hooks
    assert not find(checks.check_keys, paper).findings


@pytest.mark.parametrize('key', checks.FORMER_KEYS)
def test_key_of_mmdet_2(paper, key):
    options = {key: 'x'}
    assert checks.FORMER_KEYS[key] in the_error(find(checks.check_options, paper, options)).fix
    paper[key] = 'x'
    (finding,) = find(checks.check_keys, paper).warnings
    assert finding.where == key and checks.FORMER_KEYS[key] in finding.fix


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        *[
            (path, value)
            for path in ('train_cfg.max_epochs', 'train_dataloader.batch_size')
            for value in (0, -1, 1.5, float('inf'))
        ],
        *[('optim_wrapper.accumulative_counts', value) for value in (0, '4', True)],
        *[('train_dataloader.num_workers', value) for value in (-1, 'two')],
        *[('model.queue_len', value) for value in ('automatic', 0)],
        ('auto_scale_lr.base_batch_size', 0),
        *[('optim_wrapper.optimizer.lr', value) for value in ('fast', -0.1, float('inf'))],
        ('param_scheduler.0.T_max', '800'),
        ('default_hooks.checkpoint.interval', '1e'),
        ('model.momentum', '0.99'),
    ],
)
def test_value_of_another_kind(paper, path, value):
    paper.optim_wrapper.accumulative_counts = 1
    assert not find(checks.check_config, paper).errors
    paper.merge_from_dict({path: value})
    finding = the_error(find(checks.check_config, paper))
    assert finding.where == path and repr(value) in finding.what


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('train_cfg.max_epochs', 12.0),
        ('train_dataloader.num_workers', 0),
        ('model.queue_len', 'auto'),
        ('model.object_queue_len', None),
        ('optim_wrapper.optimizer.lr', 1),
        ('default_hooks.checkpoint.save_best', 'auto'),
    ],
)
def test_valid_value(paper, path, value):
    paper.merge_from_dict({path: value})
    assert not find(checks.check_config, paper).errors


def test_hook_as_text(detector):
    detector.custom_hooks = ['EMAHook', dict(type='EMAHook')]
    finding = the_error(find(checks.check_config, detector))
    assert finding.where == 'custom_hooks.0' and finding.fix == "write dict(type='EMAHook')"
    detector.custom_hooks = 'EMAHook'
    finding = the_error(find(checks.check_config, detector))
    assert finding.where == 'custom_hooks' and finding.fix == "write [dict(type='EMAHook')]"


@pytest.mark.parametrize('listed', [False, True])
def test_probe_without_files(paper, tmp_path, listed):
    (tmp_path / 'val.json').touch()
    probe = dict(ann_file=str(tmp_path / 'val.json'), img_root=str(tmp_path))
    if listed:
        paper.custom_hooks.append(dict(type='ProbeHook', **probe))
    else:
        paper.probe = probe
    node = paper.custom_hooks[-1] if listed else paper.probe
    assert not find(checks.check_config, paper).errors
    for name in probe:
        node[name] = str(tmp_path / 'absent')
        finding = the_error(find(checks.check_config, paper))
        assert finding.where.endswith(f'.{name}') and node[name] in finding.what
        node[name] = probe[name]


@pytest.mark.parametrize('noise', [3, (1, 2, 3), 'large'])
def test_noise_of_another_kind_is_left_to_the_constructor(paper, noise):
    paper.model.box_jitter.noise = noise
    assert not find(checks.check_curriculum, paper).errors


@pytest.mark.parametrize(
    ('path', 'value', 'nearest'),
    [
        ('default_hooks.checkpoint.intervall', 2, 'interval'),
        ('default_hooks.logger.intervals', 2, 'interval'),
        ('custom_hooks.2.windw', 3, 'window'),
        ('train_dataloader.num_worker', 2, 'num_workers'),
        ('train_dataloader.dataset.num_proposal', 2, 'num_proposals'),
        ('train_dataloader.dataset.pipeline.1.transform', [], 'transforms'),
        ('train_dataloader.dataset.pipeline.1.transforms.1.transforms.0.brigthness', 0.1, 'brightness'),
        ('train_dataloader.sampler.shufle', True, 'shuffle'),
        ('optim_wrapper.accumulative_count', 4, 'accumulative_counts'),
        ('optim_wrapper.optimizer.weigth_decay', 0.1, 'weight_decay'),
        ('param_scheduler.0.T_maxx', 3, 'T_max'),
        ('train_cfg.max_epoch', 3, 'max_epochs'),
        ('randomness.sed', 3, 'seed'),
        ('auto_scale_lr.base_batchsize', 3, 'base_batch_size'),
        ('log_processor.window', 3, 'window_size'),
        ('model.queue_length', 3, 'queue_len'),
        ('model.box_jitter.min_ious', (0.8, 0.3), 'min_iou'),
        ('model.image_head.temperatur', 0.1, 'temperature'),
        ('model.backbone.frozen_stage', 1, 'frozen_stages'),
        ('model.neck.num_out', 1, 'num_outs'),
    ],
)
def test_misspelt_argument(paper, path, value, nearest):
    paper.randomness = dict(seed=0)
    paper.merge_from_dict({path: value})
    (finding,) = find(checks.check_keys, paper).errors
    assert finding.where == path
    assert finding.fix == f'did you mean {path.rpartition(".")[0]}.{nearest}'
    assert repr(path.rpartition('.')[2]) in finding.what


@pytest.mark.parametrize(
    ('path', 'value', 'nearest'),
    [
        ('val_evaluator.metrc', 'bbox', 'metric'),
        ('train_dataloader.dataset.datasett', {}, None),
        ('model.roi_head.bbox_roi_extractr', {}, 'bbox_roi_extractor'),
        ('val_cfg.fp', True, 'fp16'),
    ],
)
def test_misspelt_argument_of_a_detector(detector, path, value, nearest):
    detector.merge_from_dict({path: value})
    (finding,) = find(checks.check_keys, detector).errors
    assert finding.where == path and (nearest is None or finding.fix.endswith(f'.{nearest}'))


@pytest.mark.parametrize(
    ('path', 'value', 'nearest'),
    [
        ('default_hooks.checkpoint.type', 'SafeCheckpointHok', 'SafeCheckpointHook'),
        ('default_hooks.checkpoint.type', 'mmselfsup.SafeCheckpointHok', 'mmselfsup.SafeCheckpointHook'),
        ('model.type', 'CCCOP', 'CCOP'),
        ('optim_wrapper.optimizer.type', 'SDG', 'SGD'),
        ('train_dataloader.dataset.type', 'ProposalsDataset', 'ProposalDataset'),
    ],
)
def test_unknown_type(paper, path, value, nearest):
    paper.merge_from_dict({path: value})
    (finding,) = find(checks.check_keys, paper).errors
    assert finding.where == path and repr(value) in finding.what
    assert finding.fix == f'did you mean {nearest}'


def test_type_of_another_scope(detector):
    detector.default_hooks.checkpoint.type = 'SafeCheckpointHook'
    (finding,) = find(checks.check_keys, detector).errors
    assert finding.fix == 'did you mean mmselfsup.SafeCheckpointHook'


def test_unknown_package(detector):
    detector.model.backbone.type = 'no_such_package.ResNet'
    (finding,) = find(checks.check_keys, detector).errors
    assert finding.where == 'model.backbone.type' and "'no_such_package.ResNet'" in finding.what


def test_hook_without_type(paper):
    paper.merge_from_dict({'default_hooks.checkpoints.interval': 2})
    (finding,) = find(checks.check_keys, paper).errors
    assert (finding.where, finding.fix) == ('default_hooks.checkpoints', 'did you mean default_hooks.checkpoint')


def test_only_parts_that_a_run_builds_are_checked(detector):
    detector.test_evaluator.metrc = detector.val_evaluator.metrc = 'bbox'
    detector.train_dataloader.num_worker = 1
    training, test = Report(), Report()
    checks.check_config(detector, training)
    checks.check_test_config(detector, test)
    assert [finding.where for finding in training.errors] == ['train_dataloader.num_worker', 'val_evaluator.metrc']
    assert [finding.where for finding in test.errors] == ['test_evaluator.metrc']


@pytest.mark.parametrize(
    ('options', 'where', 'nearest'),
    [
        ({'modle.queue_len': 8}, 'modle', 'model'),
        ({'work_dirr': 'x'}, 'work_dirr', 'work_dir'),
        ({'custom_hooks.9.interval': 1}, 'custom_hooks', '9'),
        ({'custom_hooks.health.interval': 1}, 'custom_hooks', 'health'),
        ({'load_from.path': 'x'}, 'load_from', 'None'),
        ({'model.queue_len.image': 1}, 'model.queue_len', '65536'),
        ({'load_from': dict(path='x')}, 'load_from is None', '_delete_=True'),
        ({'custom_hooks.0': 'EMAHook'}, 'element of a list', 'custom_hooks as a whole'),
        ({'model.neck.in_channels.0': 8}, 'element of a list', 'model.neck.in_channels as a whole'),
        ({'max_epochs': 3}, 'max_epochs', 'train_cfg.max_epochs'),
        ({'lr': 0.1}, 'lr', 'optim_wrapper.optimizer.lr'),
        ({'backbone.depth': 18}, 'backbone', 'model.backbone.depth'),
    ],
)
def test_option_that_cannot_be_set(paper, options, where, nearest):
    (finding,) = find(checks.check_options, paper, options).errors
    (path,) = options
    assert finding.where == f'--cfg-options {path}'
    assert where in finding.what and nearest in f'{finding.what} {finding.fix}'


@pytest.mark.parametrize(
    ('options', 'level', 'nearest'),
    [
        ({'model.roi_head.bbox_head.num_clases': 6}, 'ERROR', 'num_classes'),
        ({'model.rpn_head.anchor_generator.scale': [4]}, 'ERROR', 'scales'),
        ({'model.test_cfg.rcnn.score_th': 0.1}, 'WARNING', 'score_thr'),
        ({'data_root': 'elsewhere/'}, 'WARNING', 'no effect'),
        ({'nonsense': 1}, 'WARNING', 'no effect'),
    ],
)
def test_option_without_effect(detector, options, level, nearest):
    report = Report()
    checks.check_options(detector, options, report)
    (finding,) = report.findings
    assert finding.level.value == level and nearest in str(finding)


@pytest.mark.parametrize(
    'options',
    [
        {'train_dataloader.dataset.metainfo.classes': ('a',), 'train_dataloader.dataset.indices': 4},
        {'train_dataloader.persistent_workers': False, 'train_dataloader.prefetch_factor': 2},
        {'default_hooks.checkpoint': None},
        {'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.save_best': 'auto'},
        {'model.init_cfg': dict(type='CCOPPretrained', checkpoint='x', _delete_=True)},
        {'model.test_cfg.rcnn.score_thr': 0.1, 'model.roi_head.bbox_head.num_classes': 6},
        {'param_scheduler.0.end': 5, 'param_scheduler.1.milestones': [5]},
        {'experiment_name': 'x', 'randomness.seed': 1, 'load_from': 'x', 'optim_wrapper.clip_grad.max_norm': 1},
        {'val_evaluator.ann_file': 'x', 'env_cfg.mp_cfg.mp_start_method': 'spawn', 'find_unused_parameters': True},
        {'model.backbone.norm_cfg.eps': 1e-3, 'model.data_preprocessor.pad_size_divisor': 64},
    ],
)
def test_valid_options_have_no_finding(detector, options):
    assert not find(checks.check_options, detector, options).findings
    detector.merge_from_dict(options)
    assert not find(checks.check_keys, detector).findings


def test_lost_curriculum_hook(paper):
    paper.custom_hooks = [dict(type='ProbeHook', ann_file='val.json', img_root='val/', ks=(5,))]
    (finding,) = find(checks.check_curriculum, paper).errors
    assert finding.where == 'custom_hooks' and 'SpatialCurriculumHook' in finding.what
    add_default_hooks(paper)  # as in a run
    assert the_error(find(checks.check_curriculum, paper)) == finding
    line = finding.fix.partition('custom_hooks = ')[2]
    assert line == "[*_base_.custom_hooks, dict(type='ProbeHook', ann_file='val.json', img_root='val/', ks=(5,))]"


@pytest.mark.parametrize(
    ('jitter', 'is_error'),
    [
        (dict(), True),
        (dict(noise=(0.5, 0.5)), True),
        (dict(noise=(0.5, 0.5), min_iou=(0.5, 0.5)), False),
        (dict(noise=[0.5, 0.5], min_iou=[0.5, 0.5], noise_wh=(0.1, 0.2)), True),
        (dict(noise=(0.0, 0.0)), False),
    ],
)
def test_curriculum_hook_is_needed_only_if_the_noise_changes(paper, jitter, is_error):
    paper.model.box_jitter = dict(type='SCSBoxJitter', **jitter)
    paper.custom_hooks = []
    assert bool(find(checks.check_curriculum, paper).errors) == is_error
    paper.default_hooks.curriculum = dict(type='mmselfsup.SpatialCurriculumHook')
    assert not find(checks.check_curriculum, paper).errors


def test_written_line_is_a_valid_config(paper, tmp_path):
    paper.custom_hooks = [dict(type='ProbeHook', ann_file='val.json', img_root='val/')]
    (finding,) = find(checks.check_curriculum, paper).errors
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = [{str(PAPER)!r}]\n{finding.fix.removeprefix("write ")}\n')
    cfg = read_config(path)
    assert [hook.type for hook in cfg.custom_hooks][-1] == 'ProbeHook'
    assert not find(checks.check_curriculum, cfg).errors


def test_large_backbone_on_a_cpu(paper, monkeypatch):
    monkeypatch.setattr(checks, 'get_device', lambda: 'cpu')
    (finding,) = find(checks.check_device, paper).warnings
    assert 'ResNet-50' in finding.what and checks.SMALL_CONFIG in finding.fix
    assert (ROOT / checks.SMALL_CONFIG).is_file()
    assert not find(checks.check_device, read_config(ROOT / checks.SMALL_CONFIG)).findings
    monkeypatch.setattr(checks, 'get_device', lambda: 'cuda')
    assert not find(checks.check_device, paper).findings


LAUNCHERS = [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'), ('mpi', 'OMPI_COMM_WORLD_SIZE')]


@pytest.mark.parametrize(('launcher', 'variable'), LAUNCHERS)
@pytest.mark.parametrize(
    ('launched', 'options', 'path'),
    [
        (False, {}, 'model.backbone.norm_cfg'),  # a single process has nothing to synchronize with
        (True, {}, None),
        (True, {'model.neck.norm_cfg.type': 'BN'}, 'model.neck.norm_cfg'),
        (False, {'model.backbone.norm_eval': True, 'model.neck.norm_cfg': None, 'model.roi_head': None}, None),
        (False, {'train_dataloader.batch_size': 2}, None),
    ],
)
def test_batch_statistics_of_one_image(detector, monkeypatch, launcher, variable, launched, options, path):
    monkeypatch.setenv(variable, '8')
    detector.merge_from_dict({'train_dataloader.batch_size': 1, **options})
    if launched:
        detector.launcher = launcher
    warnings = find(checks.check_batch_statistics, detector).warnings
    assert [finding.what.partition(' ')[0] for finding in warnings] == ([path] if path else [])


@pytest.mark.parametrize(('launcher', 'variable'), LAUNCHERS)
def test_batch_statistics_of_a_single_launched_process(detector, monkeypatch, launcher, variable):
    detector.merge_from_dict({'train_dataloader.batch_size': 1, 'launcher': launcher})
    monkeypatch.setenv(variable, '1')
    assert find(checks.check_batch_statistics, detector).warnings


def test_default_batch_size_is_one_image(detector):
    del detector.train_dataloader['batch_size']
    assert find(checks.check_batch_statistics, detector).warnings
    detector.train_dataloader = None
    assert not find(checks.check_batch_statistics, detector).findings


def test_backbone_keeps_its_statistics_by_default(detector):
    detector.train_dataloader.batch_size = 1
    detector.model = dict(
        type='RetinaNet', backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN')), neck=dict(type='FPN')
    )
    assert not find(checks.check_batch_statistics, detector).findings
