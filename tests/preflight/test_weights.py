"""A checkpoint must be that of the model, with finite values, before a test, a resumed run or ``load_from`` starts."""

import copy
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from foreign_states import moco_state, release_state, torchvision_state
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from planted_code import Planted
from small_pretraining import image_folder, small_config  # noqa: F401  fixtures
from small_transfer import CONFIGS, coco_data, make_small, narrow_model, pretraining, read_config
from synthetic_scenes.scenes import write_scenes

from ccop_mm.compat import prepare_config
from ccop_mm.engine import launch
from ccop_mm.preflight.checkpoint import read_checkpoint
from ccop_mm.preflight.findings import Level, Report
from ccop_mm.preflight.weights import (
    build_for_comparison,
    check_initializers,
    check_load_from,
    check_model_fits,
    check_resume_weights,
    check_test_weights,
)

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
MASK_RCNN = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_random_1x_coco.py'
RETINANET = CONFIGS / 'transfer/retinanet/retinanet_r50-fpn_random_1x_coco.py'
CLASSIFIER = 'roi_head.bbox_head.fc_cls.weight'
DEEPER = 'backbone.layer1.2.conv1.weight'  # in a ResNet-34, not in a ResNet-18


EVERY_CONFIG = [
    # One of each folder is enough for the fast tests.
    pytest.param(path, marks=[pytest.mark.slow] if number else [])
    for folder in sorted({path.parent for path in CONFIGS.rglob('*.py')})
    for number, path in enumerate(sorted(folder.glob('*.py')))
    if folder.name != '_base_'
]


def small(path=MASK_RCNN, num_classes=6, **options):
    cfg = read_config(path)
    cfg.merge_from_dict({**narrow_model(cfg, num_classes), **options})
    return prepare_config(cfg)


def random_state(cfg):
    """Returns the state dict of the model of a config, with the values of the constructors."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(copy.deepcopy(cfg.model)).state_dict()


@pytest.fixture(scope='module')
def states():
    """State dicts of small models by name."""
    return dict(
        mask_rcnn=random_state(small()),
        resnet34=random_state(small(**{'model.backbone.depth': 34})),
        retinanet=random_state(small(RETINANET)),
        pretraining=pretraining(18).state_dict(),
    )


@pytest.fixture
def save(tmp_path):
    """``save(state, change, **content)`` saves a state dict like a run, after a change to it; returns the path."""

    def save(state, change=lambda state: None, **content):
        state = state.copy()
        change(state)
        path = tmp_path / 'iter_9.pth'
        torch.save(dict(meta=dict(iter=9, epoch=1, seed=1), state_dict=state, optimizer={}, **content), path)
        return str(path)

    return save


def findings_of_test(cfg, path):
    report = Report()
    checkpoint = read_checkpoint(path, report)
    if checkpoint is not None:
        check_test_weights(cfg, report, checkpoint)
    return report


def findings_of_training(cfg, resume=None):
    report = Report()
    if resume is None:
        check_load_from(cfg, report)
        return report
    checkpoint = read_checkpoint(resume, report)
    if checkpoint is not None:
        check_resume_weights(cfg, report, checkpoint)
    return report


def add_nan(key):
    def change(state):
        state[key] = state[key].clone().float()
        state[key].view(-1)[-1] = float('nan')

    return change


# Checkpoints of other models: name of the state, options of the tested config, parts of the lines and of the fix.
OTHER_MODELS = [
    ('pretraining', {}, [CLASSIFIER.replace('.weight', '.bias'), 'encoder_k.'], 'CCOPPretrained'),
    ('mask_rcnn', {'model.backbone.depth': 34}, [DEEPER], 'ResNet-34'),
    ('resnet34', {}, [DEEPER], 'ResNet-18'),
    ('retinanet', {}, ['rpn_head.rpn_conv.weight', CLASSIFIER], 'ResNet-50'),
    ('mask_rcnn', {'model.roi_head.bbox_head.num_classes': 80}, [CLASSIFIER, '(7, 32)', '(81, 32)'], 'classes'),
    ('mask_rcnn', {'model.backbone.base_channels': 16}, ['backbone.conv1.weight', '(8, 3, 7, 7)'], 'config'),
]


@pytest.mark.parametrize(('name', 'options', 'parts', 'fix'), OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_not_tested(states, save, name, options, parts, fix):
    path = save(states[name])
    report = findings_of_test(small(**options), path)
    lines = [str(finding) for finding in report.errors]
    assert lines and all(line.startswith(f'ERROR {path}: ') for line in lines)
    assert all(fix in finding.fix for finding in report.errors)
    # Of hundreds of keys a line lists only the first ones; some of the keys asked for are further back.
    complete = full_lists(small(**options), states[name])
    assert all(part in complete for part in parts)
    assert max(map(len, lines)) < 800


def full_lists(cfg, state, monkeypatch=pytest.MonkeyPatch):
    report = Report()
    with monkeypatch.context() as patch:
        patch.setattr('ccop_mm.preflight.weights.NUM_EXAMPLES', 10000)
        check_model_fits(cfg, state, report, 'x.pth')
    return '\n'.join(map(str, report.findings))


def test_a_line_states_the_number_of_keys_and_the_first_of_them(states, save):
    missing = sorted(set(states['resnet34']) - set(states['mask_rcnn']))
    learned = [key for key in missing if 'num_batches_tracked' not in key]
    (finding,) = findings_of_test(small(**{'model.backbone.depth': 34}), save(states['mask_rcnn'])).errors
    assert f'{len(learned)} keys' in finding.what and DEEPER in finding.what
    (finding,) = findings_of_test(small(), save(states['resnet34'])).errors
    assert f'{len(missing)} keys' in finding.what and DEEPER in finding.what


def test_one_line_for_each_list(states, save):
    def change(state):
        del state['neck.fpn_convs.0.conv.weight']
        state['a.b'] = torch.zeros(1)
        state[CLASSIFIER] = torch.zeros(3, 32)

    errors = findings_of_test(small(), save(states['mask_rcnn'], change)).errors
    assert len(errors) == 3
    for finding, key in zip(errors, ('neck.fpn_convs.0.conv.weight', 'a.b', CLASSIFIER), strict=True):
        assert finding.what.startswith('1 keys') and key in finding.what


@pytest.mark.parametrize(
    ('change', 'content'),
    [
        (lambda state: None, {}),
        (lambda state: [state.pop(key) for key in list(state) if 'num_batches_tracked' in key], {}),
        (lambda state: [state.update({f'module.{key}': state.pop(key)}) for key in list(state)], {}),
        (lambda state: state.update({key: tensor.half() for key, tensor in state.items()}), {}),
        (lambda state: None, dict(ema_state_dict={'module.a': torch.full((1,), float('nan'))})),
    ],
)
def test_a_checkpoint_of_the_model_is_tested(states, save, change, content):
    assert not findings_of_test(small(), save(states['mask_rcnn'], change, **content)).findings


def test_a_bare_state_dict_is_tested(states, tmp_path):
    torch.save(states['mask_rcnn'], tmp_path / 'bare.pth')
    assert not findings_of_test(small(), str(tmp_path / 'bare.pth')).findings


def write_file(path, write):
    write(path)
    return str(path)


@pytest.mark.parametrize(
    ('name', 'write', 'reason'),
    [
        ('gone.pth', lambda path: None, 'exist'),
        ('half.pth', lambda path: (torch.save({'a': torch.zeros(999)}, path), os.truncate(path, 800)), 'truncated'),
        ('code.pth', lambda path: torch.save(Planted(path.with_suffix('.marker')), path), 'code'),
        ('d2.pth', lambda path: torch.save(dict(model={'a': torch.zeros(1)}), path), 'model'),
        ('text.pth', lambda path: torch.save(dict(state_dict={'a': 'b'}), path), r'a is not a tensor'),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, write, reason):
    path = write_file(tmp_path / name, write)
    for report in (
        findings_of_test(small(), path),
        findings_of_training(small(), path),
        findings_of_training(small(load_from=path)),
    ):
        (finding,) = report.findings
        assert finding.level is Level.ERROR and finding.where == path and reason in str(finding)
    assert not (tmp_path / 'code.marker').exists()


def test_values_that_are_not_finite_are_refused(states, save):
    key = 'roi_head.mask_head.convs.1.conv.weight'
    path = save(states['mask_rcnn'], add_nan(key))
    for report in (
        findings_of_test(small(), path),
        findings_of_training(small(), path),
        findings_of_training(small(load_from=path)),
    ):
        (finding,) = report.findings
        assert finding.level is Level.ERROR and finding.where == path
        assert f'1 of {len(states["mask_rcnn"])} ' in finding.what and key in finding.what


def test_averages_and_optimizer_that_are_not_finite_are_not_resumed(states, save):
    bad = torch.full((2,), float('inf'))
    path = save(states['mask_rcnn'], ema_state_dict={'module.a': bad, 'steps': torch.tensor(3)})
    assert 'ema_state_dict.module.a' in str(findings_of_training(small(), path).errors[0])
    content = torch.load(path, weights_only=True)
    content.update(ema_state_dict={}, optimizer=dict(state={4: dict(momentum_buffer=bad)}, param_groups=[dict(lr=1.0)]))
    torch.save(content, path)
    (finding,) = findings_of_training(small(), path).errors
    assert 'optimizer.state.4.momentum_buffer' in finding.what
    assert not findings_of_training(small(load_from=path)).findings  # reads neither


@pytest.mark.parametrize(
    ('part', 'path'),
    [
        ('model', 'model.init_cfg.checkpoint'),
        ('backbone', 'model.backbone.init_cfg.checkpoint'),
        ('list', 'model.backbone.init_cfg.1.checkpoint'),
    ],
)
def test_file_of_an_initializer_that_does_not_exist(tmp_path, part, path):
    cfg = small()
    cfg.model.init_cfg = None
    initializer = dict(type='Pretrained', checkpoint=str(tmp_path / 'absent.pth'))
    if part == 'model':
        cfg.model.init_cfg = initializer
    else:
        cfg.model.backbone.init_cfg = initializer if part == 'backbone' else [dict(type='Normal'), initializer]
    report = Report()
    check_initializers(cfg, report)
    (finding,) = report.errors
    assert finding.where == path and f'{tmp_path}/absent.pth' in finding.what
    (tmp_path / 'absent.pth').touch()
    initializer['type'] = 'CCOPPretrained'  # reads the file itself
    if part == 'model':
        cfg.model.init_cfg = initializer
    else:
        cfg.model.backbone.init_cfg = initializer
    cfg.model.neck.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    report = Report()
    check_initializers(cfg, report)
    assert not report.findings


def findings_of_pretrained(part, path, **initializer):
    cfg = small()
    cfg.model.init_cfg = None
    node = cfg.model if part == 'model' else cfg.model[part]
    node.init_cfg = dict(type='Pretrained', checkpoint=path, **initializer)
    report = Report()
    check_initializers(cfg, report)
    return report


def only_backbone(state):
    for key in list(state):
        value = state.pop(key)
        if key.startswith('backbone.'):
            state[key.removeprefix('backbone.')] = value


def test_pretrained_weights_that_fit(states, save):
    path = save(states['mask_rcnn'])
    assert not findings_of_pretrained('model', path).findings
    assert not findings_of_pretrained('backbone', path, prefix='backbone.').findings
    assert not findings_of_pretrained('neck', path, prefix='neck').findings
    assert not findings_of_pretrained('backbone', save(states['mask_rcnn'], only_backbone)).findings


@pytest.mark.parametrize(
    ('name', 'part', 'initializer', 'fix'),
    [
        ('mask_rcnn', 'backbone', {}, "prefix='backbone.'"),
        ('mask_rcnn', 'backbone', dict(prefix='encoder'), 'weights of this part'),
        ('retinanet', 'backbone', dict(prefix='backbone.'), 'depth'),  # ResNet-50
        ('resnet34', 'model', {}, 'depth'),
        ('pretraining', 'neck', dict(prefix='encoder_k'), 'weights of this part'),
    ],
)
def test_pretrained_weights_of_another_model(states, save, name, part, initializer, fix):
    path = save(states[name])
    (finding,) = findings_of_pretrained(part, path, **initializer).errors
    assert finding.where.endswith('.init_cfg') and path in finding.what and fix in finding.fix


def test_pretrained_weights_that_are_not_finite(states, save):
    path = save(states['mask_rcnn'], add_nan('backbone.conv1.weight'))
    (finding,) = findings_of_pretrained('backbone', path, prefix='backbone.').errors
    assert finding.where == path and 'conv1.weight' in finding.what


# load_from


def test_load_from_the_same_model_is_accepted(states, save):
    assert not findings_of_training(small(load_from=save(states['mask_rcnn']))).findings


@pytest.mark.parametrize(
    ('options', 'path', 'key'),
    [
        ({}, CONFIGS / 'transfer/faster_rcnn/faster-rcnn_r50-fpn_random_24k_voc0712.py', 'roi_head.mask_head.'),
        ({'num_classes': 80}, MASK_RCNN, CLASSIFIER),
    ],
)
def test_load_from_another_head_is_a_warning(save, options, path, key):
    source = random_state(small(**{'model.backbone.depth': 50, 'model.neck.in_channels': [32, 64, 128, 256]}))
    target = small(path, **{'model.backbone.depth': 50, 'model.neck.in_channels': [32, 64, 128, 256]}, **options)
    target.load_from = save(source)
    report = findings_of_training(target)
    assert not report.errors and any(key in finding.what for finding in report.warnings)


def test_load_from_a_pretraining_into_a_detector_whose_fpn_starts_at_c2_is_a_warning(states, save):
    report = findings_of_training(small(load_from=save(states['pretraining'])))
    assert not report.errors and any('image_projector.' in finding.what for finding in report.warnings)


@pytest.mark.parametrize(
    ('change', 'initializer'),
    [
        (torchvision_state, 'BackbonePretrained'),
        (moco_state, 'BackbonePretrained'),
        (release_state, 'CCOPPretrained'),
    ],
)
@pytest.mark.parametrize('target', ['detector', 'pretraining'])
def test_load_from_a_file_without_the_prefix_of_the_backbone_names_the_initializer(save, change, initializer, target):
    """mmengine would load no key of it and start from random weights."""
    source = pretraining(50).state_dict()
    options = {'model.backbone.depth': 50, 'model.neck.in_channels': [32, 64, 128, 256]}
    cfg = small(**options) if target == 'detector' else small_ccop()
    cfg.load_from = save(change(source))
    (finding,) = findings_of_training(cfg).findings
    assert finding.level is Level.ERROR and f"type='{initializer}'" in finding.fix
    assert 'backbone.conv1.weight' in finding.what


def small_ccop(depth=50, **options):
    """Returns the pre-training config of ``pretraining(depth)``."""
    from small_transfer import FPN_WIDTH, WIDTH, channels

    cfg = read_config(CONFIGS / f'ccop/ccop_r{depth}_fpn_800e_coco.py')
    cfg.merge_from_dict(
        {
            'model.queue_len': 'auto',  # resolved only after the checks
            'model.backbone.base_channels': WIDTH,
            'model.neck.in_channels': channels(depth),
            'model.neck.out_channels': FPN_WIDTH,
            'model.image_projector.in_channels': channels(depth)[-1],
            'model.image_projector.hid_channels': 8,
            'model.object_projector.in_channels': FPN_WIDTH * 49,
            'model.object_projector.hid_channels': 8,
            **options,
        }
    )
    return cfg


def test_load_from_an_unknown_file_is_an_error(save):
    (finding,) = findings_of_training(small(load_from=save({'a.weight': torch.zeros(2, 2)}))).findings
    assert finding.level is Level.ERROR and 'a.weight' in finding.what and ' 0 of ' in finding.what


@pytest.mark.parametrize(('name', 'depth'), [('resnet34', 18), ('mask_rcnn', 34)])
def test_load_from_another_depth_is_an_error(states, save, name, depth):
    (finding,) = findings_of_training(small(load_from=save(states[name]), **{'model.backbone.depth': depth})).findings
    assert finding.level is Level.ERROR and 'ResNet-18' in finding.what and 'ResNet-34' in finding.what


@pytest.mark.parametrize('source', ['ccop', 'detector'])
def test_load_from_into_an_fpn_that_starts_at_another_level_is_an_error(save, source):
    """Equal shapes of ``fpn_convs`` would load P2 into P3 and so on."""
    options = {'model.backbone.depth': 50, 'model.neck.in_channels': [32, 64, 128, 256]}
    state = pretraining(50).state_dict() if source == 'ccop' else random_state(small(**options))
    cfg = small(RETINANET, load_from=save(state))
    assert cfg.model.neck.start_level == 1
    (finding,) = findings_of_training(cfg).findings
    assert finding.level is Level.ERROR and 'neck.lateral_convs.0.conv.weight' in finding.what
    assert ('CCOPPretrained' in finding.fix) == (source == 'ccop')


def test_a_resumed_run_does_not_check_load_from(states, save):
    path = save(states['mask_rcnn'])
    assert not findings_of_training(small(load_from='gone.pth', resume=True), path).findings
    assert not findings_of_training(small(load_from='gone.pth', resume=True)).findings


# resume


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        ({'model.image_projector.hid_channels': 16}, 'image_projector.'),
        ({'model.object_projector.hid_channels': 16}, 'object_projector.'),
        ({'model.backbone.depth': 34}, DEEPER),
        ({'model.neck.out_channels': 16, 'model.object_projector.in_channels': 16 * 49}, 'neck.'),
        ({'model.feat_dim': 64}, 'image_queue.keys'),
    ],
)
def test_another_model_is_not_resumed(states, save, options, key):
    cfg = small_ccop(18, **options)
    path = save(states['pretraining'])
    errors = findings_of_training(cfg, path).errors
    assert errors and all(finding.where == path for finding in errors)
    assert key in full_lists(cfg, states['pretraining'])


@pytest.mark.parametrize('options', [{}, {'model.queue_len': 24, 'model.object_queue_len': 4}])
def test_the_same_model_is_resumed_with_queues_of_any_length(states, save, options):
    assert not findings_of_training(small_ccop(18, **options), save(states['pretraining'])).findings


# classes

NAMES = ('cat', 'dog', 'horse', 'cow', 'sheep', 'bird')


def with_classes(classes, part, **options):
    return small(**{f'{part}_dataloader.dataset.metainfo': dict(classes=classes), **options})


@pytest.fixture
def trained(states, tmp_path):
    """``trained(**meta)`` saves a detector with metadata of its run; returns the path."""

    def save(**meta):
        path = str(tmp_path / 'iter_9.pth')
        torch.save(dict(meta=dict(iter=9, epoch=1, **meta), state_dict=states['mask_rcnn'], optimizer={}), path)
        return path

    return save


@pytest.mark.parametrize(('findings', 'part'), [(findings_of_test, 'test'), (findings_of_training, 'train')])
@pytest.mark.parametrize(
    ('classes', 'parts'),
    [
        (('cat', 'horse', 'dog', *NAMES[3:]), ["label 1 is 'horse', there 'dog'"]),
        (NAMES[::-1], ["label 0 is 'bird', there 'cat'"]),
        ((*NAMES[:5], 'Bird'), ["label 5 is 'Bird', there 'bird'"]),
        (NAMES[:5], ['the 5 classes', 'the 6 of', "label 5 is missing, there 'bird'"]),
        ((*NAMES, 'fox'), ["label 6 is 'fox', there missing"]),
    ],
)
def test_classes_of_the_checkpoint_in_another_order_are_refused(trained, findings, part, classes, parts):
    """All shapes are equal: nothing else would show that the labels stand for other classes."""
    path = trained(dataset_meta=dict(classes=NAMES))
    (finding,) = findings(with_classes(classes, part), path).findings
    assert finding.level is Level.ERROR and finding.where == f'{part}_dataloader.dataset.metainfo.classes'
    assert path in finding.what and all(text in finding.what for text in parts)
    assert ', '.join(map(repr, NAMES)) in finding.fix


@pytest.mark.parametrize(('findings', 'part'), [(findings_of_test, 'test'), (findings_of_training, 'train')])
@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=NAMES, palette=[(1, 2, 3)])),
        dict(dataset_meta=dict(classes=list(NAMES))),
        dict(dataset_meta=dict(CLASSES=NAMES)),
        dict(dataset_meta=dict(palette=[])),
        dict(dataset_meta=None),
        {},
    ],
)
def test_the_same_or_unknown_classes_are_accepted(trained, findings, part, meta):
    assert not findings(with_classes(NAMES, part), trained(**meta)).findings


def test_default_classes_of_a_dataset_are_compared(trained):
    cfg = small()
    assert 'metainfo' not in cfg.test_dataloader.dataset
    (finding,) = findings_of_test(cfg, trained(dataset_meta=dict(classes=NAMES))).findings
    assert "label 0 is 'person', there 'cat'" in finding.what
    coco = CocoDataset.METAINFO['classes']
    assert not findings_of_test(cfg, trained(dataset_meta=dict(classes=coco))).findings


def test_classes_of_a_detector_with_text_queries_may_differ(trained):
    path = trained(dataset_meta=dict(classes=NAMES))
    cfg = with_classes(('fox',), 'test', **{'test_dataloader.dataset.return_classes': True})
    assert not findings_of_test(cfg, path).findings


# configs and real checkpoints


@pytest.mark.parametrize('path', EVERY_CONFIG, ids=lambda path: path.stem)
def test_the_model_of_every_config_fits_itself(path):
    cfg = read_config(path)
    model = build_for_comparison(cfg)
    parameter = next(model.parameters())
    assert parameter.is_meta, 'a constructor that computes with tensors makes this check slow'
    report = Report()
    check_model_fits(cfg, model.state_dict(), report, 'x.pth')
    assert not report.findings


def test_a_model_whose_constructor_computes_with_tensors_is_built_on_the_cpu():
    swin = dict(type='mmdet.SwinTransformer', embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    cfg = Config(dict(default_scope='mmdet', model=swin))
    report = Report()
    state = random_state(cfg)
    check_model_fits(cfg, state, report, 'x.pth')
    state.pop('stages.0.blocks.0.attn.w_msa.relative_position_index')  # computed by the constructor
    check_model_fits(cfg, state, report, 'x.pth')
    assert not report.findings
    state.pop('stages.0.blocks.0.attn.w_msa.relative_position_bias_table')
    check_model_fits(cfg, state, report, 'x.pth')
    assert 'relative_position_bias_table' in report.errors[0].what


def test_a_model_that_cannot_be_built_is_left_to_the_run():
    report = Report()
    check_model_fits(Config(dict(default_scope='mmdet', model=dict(type='NoSuchDetector'))), {}, report, 'x.pth')
    check_model_fits(Config(dict(default_scope='mmdet')), {}, report, 'x.pth')
    assert not report.findings


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    return root / 'images', write_scenes(root, num_train=2, num_val=2, size=(64, 96))['val']


def small_run(path, scenes, tmp_path, **options):
    """Returns the config of a run of one iteration on two images."""
    cfg = read_config(path)
    classes = json.loads(scenes[1].read_text())['categories']
    settings = {**narrow_model(cfg, len(classes)), **coco_data(cfg, *scenes)}
    settings |= {'default_hooks.checkpoint': dict(interval=1), 'visualizer.name': f'{path.stem}_{tmp_path.name}'}
    return make_small(path, {**settings, **options}, tmp_path / 'work')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'options'),
    [
        (MASK_RCNN, {'custom_hooks': [dict(type='EMAHook', begin_iter=0)]}),
        (RETINANET, {}),
        (
            CONFIGS / 'transfer/faster_rcnn/faster-rcnn_r50-fpn_ccop-800e_24k_voc0712-cocofmt.py',
            {'model.init_cfg': None},
        ),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else '',
)
def test_checkpoints_of_real_runs_are_accepted(scenes, tmp_path, path, options):
    cfg = small_run(path, scenes, tmp_path, **options)
    launch.train(copy.deepcopy(cfg))
    checkpoint = str(tmp_path / 'work/iter_1.pth')
    assert not findings_of_test(cfg, checkpoint).findings
    assert not findings_of_training(cfg, checkpoint).findings
    cfg.load_from = checkpoint
    assert not findings_of_training(cfg).findings


# tools


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(tool, *arguments)`` runs a tool in this process; returns its exit code and its output."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def config(scenes, tmp_path):
    cfg = small_run(MASK_RCNN, scenes, tmp_path)
    for key in ('work_dir', 'experiment_name'):
        cfg.pop(key)
    cfg.dump(tmp_path / 'detector.py')
    return tmp_path / 'detector.py'


@pytest.mark.parametrize(('name', 'options', 'parts', 'fix'), OTHER_MODELS[:5])
def test_the_test_tool_ends_with_2_and_prints_no_ap(call, config, states, save, tmp_path, name, options, parts, fix):
    arguments = (config, save(states[name]), '--work-dir', tmp_path / 'test')
    if options:
        arguments += ('--cfg-options', *(f'{key}={value}' for key, value in options.items()))
    code, out, error = call('test.py', *arguments)
    assert code == 2 and 'mAP' not in out + error and fix in error
    assert all(line.startswith('ERROR ') for line in error.splitlines())
    assert not list(tmp_path.glob('test/*/*.log'))


def test_the_test_tool_refuses_values_that_are_not_finite(call, config, states, save, tmp_path):
    checkpoint = save(states['mask_rcnn'], add_nan(CLASSIFIER))
    code, out, error = call('test.py', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert code == 2 and CLASSIFIER in error and 'mAP' not in out + error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize('arguments', [['--resume'], ['--cfg-options', 'load_from=']])
def test_the_train_tool_starts_neither_from_another_model(call, config, save, tmp_path, arguments):
    checkpoint = save({'layer1.0.conv1.weight': torch.zeros(8, 8, 3, 3)})
    *options, last = arguments
    last = f'{last}{checkpoint}' if last.endswith('=') else last
    values = [*options, last] if last != '--resume' else [last, checkpoint]
    code, _, error = call('train.py', config, '--work-dir', tmp_path / 'work', *values)
    assert code == 2 and 'layer1.0.conv1.weight' in error
    assert not list(tmp_path.glob('work/*.pth')) and not list(tmp_path.glob('work/*/*.log'))


def test_a_pretraining_with_another_projector_is_not_resumed(call, small_config, save, tmp_path):  # noqa: F811
    cfg = small_config()
    path = cfg.filename
    checkpoint = save(random_state(cfg))
    arguments = (path, '--work-dir', tmp_path / 'work', '--resume', checkpoint)
    code, _, error = call('train.py', *arguments, '--cfg-options', 'model.image_projector.hid_channels=16')
    assert code == 2 and 'image_projector.' in error and all(line.startswith('ERROR ') for line in error.splitlines())
    assert not list(tmp_path.glob('work/*.pth'))


@pytest.mark.slow
def test_initializer_and_export_refuse_values_that_are_not_finite(call, scenes, states, save, tmp_path):
    key = 'backbone.layer2.0.conv1.weight'
    checkpoint = save(states['pretraining'], add_nan(key))
    path = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-800e_1x_coco.py'
    small_run(path, scenes, tmp_path, **{'model.init_cfg.checkpoint': checkpoint}).dump(tmp_path / 'transfer.py')
    code, _, error = call('train.py', tmp_path / 'transfer.py', '--work-dir', tmp_path / 'work')
    assert code == 2 and key in error and checkpoint in error
    assert not list(tmp_path.glob('work/*.pth'))
    arguments = (checkpoint, '--to', 'torchvision', '--out', tmp_path / 'export.pth')
    code, _, error = call('model_converters/export_checkpoint.py', *arguments)
    assert code == 2 and key in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'export.pth').exists()
