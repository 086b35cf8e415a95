import ast
import functools
import inspect
import json
import subprocess
import sys
from pathlib import Path

import cv2
import mmselfsup.models
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmselfsup.registry import DATASETS, MODELS, TRANSFORMS
from mmselfsup.structures import SelfSupDataSample
from torch import nn

from ccop_mm.apis import generate_proposals
from ccop_mm.datasets.photometric_recipe import PhotometricRecipe
from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for name in ('ccop', 'ablations') for path in (ROOT / 'configs' / name).glob('*.py'))
PAPER = ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py'
MOCO = ROOT / 'configs/baselines/mocov2_r50_800e_coco.py'

BUILD_SCRIPT = """
from mmengine.config import Config
cfg = Config.fromstring('''
default_scope = '{scope}'
custom_imports = dict(imports=['ccop_mm'])
model = dict(
    type='{prefix}CCOP',
    backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8),
    neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    image_projector=dict(type='{prefix}ProjectionMLP', in_channels=64),
    object_projector=dict(type='{prefix}ProjectionMLP', in_channels=784),
    object_head=dict(type='{prefix}ObjectContrastHead', temperature=0.1),
    intra_loss=dict(type='{prefix}IntraImageLoss', alpha=0.3),
    box_jitter=dict(type='{prefix}SCSBoxJitter', num_jitter=3),
    queue_len=8,
)
hook = dict(type='{prefix}SpatialCurriculumHook')
''', '.py')
from mmengine.registry import init_default_scope
from {scope}.registry import HOOKS, MODELS
init_default_scope('{scope}')
model = MODELS.build(cfg.model)
names = [type(part).__name__ for part in (model, model.object_head, model.intra_loss, model.box_jitter)]
print(*names, model.object_head.temperature, model.box_jitter.num_jitter, type(HOOKS.build(cfg.hook)).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize('scope, prefix', [('mmselfsup', ''), ('mmdet', 'mmselfsup.')])
def test_custom_imports_alone_register_ccop(scope, prefix):
    # In a separate interpreter, so that only custom_imports can have imported ccop_mm.
    code = BUILD_SCRIPT.format(scope=scope, prefix=prefix)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = 'CCOP ObjectContrastHead IntraImageLoss SCSBoxJitter 0.1 3 SpatialCurriculumHook'
    assert done.stdout.strip().splitlines()[-1] == expected


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_model_builds_with_trainable_norm_layers(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmselfsup')
    cfg.model.update(queue_len=64, object_queue_len=64)  # replaces 'auto' and saves memory
    model = MODELS.build(cfg.model)
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training and norm.weight.requires_grad for norm in norms)
    assert len(norms) > 15
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())
    names = set(model.state_dict())
    assert {'backbone.conv1.weight', 'neck.lateral_convs.0.conv.weight', 'neck.fpn_convs.3.bn.running_var'} <= names


@pytest.mark.parametrize('path', [*CONFIGS, MOCO], ids=lambda path: path.stem)
def test_zero_init_residual_is_that_of_moco_v2(path):
    # MoCo v2 uses the default of mmselfsup's ResNet, which differs from mmdet's.
    default = inspect.signature(mmselfsup.models.ResNet.__init__).parameters['zero_init_residual'].default
    backbone = Config.fromfile(path).model.backbone
    assert backbone.zero_init_residual == default
    init_default_scope('mmselfsup')
    built = MODELS.build(backbone)
    for norm in built.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.fill_(0.5)
    built.init_weights()
    assert all((norm.weight == 1).all() for norm in built.modules() if isinstance(norm, nn.BatchNorm2d))


def test_default_config_matches_the_paper():
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r50_fpn_800e_coco.py')
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=1e-4, fused=True)
    assert cfg.train_dataloader.batch_size == 32  # 256 over 8 GPUs
    assert cfg.train_cfg.max_epochs == 800
    (schedule,) = cfg.param_scheduler
    assert (schedule.type, schedule.T_max, schedule.eta_min) == ('CosineAnnealingLR', 800, 0.0)
    assert cfg.train_dataloader.dataset.ann_file.endswith('instances_train2017.json')
    model = cfg.model
    assert (model.backbone.depth, model.queue_len, model.momentum) == (50, 65536, 0.999)
    assert model.image_head.temperature == model.object_head.temperature == 0.2
    assert (model.intra_loss.alpha, model.intra_loss.iou_thr, model.intra_loss.mode) == (0.4, 0.05, 'hinge')
    jitter = model.box_jitter
    assert (jitter.noise, jitter.min_iou, jitter.anchor) == ((0.3, 1.0), (0.8, 0.3), 'top_left')
    view = cfg.train_pipeline[1]['transforms']
    assert (view[0]['size'], view[0]['scale']) == (224, (0.2, 1.0))


def flatten(value, prefix=''):
    """Converts a nested config to a dict from path to leaf."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {path: leaf for key, part in items for path, leaf in flatten(part, f'{prefix}.{key}').items()}


def test_reference_config_differs_from_the_paper_only_in_documented_settings():
    paper, reference = (
        flatten(
            {
                key: value
                for key, value in Config.fromfile(ROOT / f'configs/ccop/ccop{name}_r50_fpn_800e_coco.py').items()
                if key not in ('view_pipeline', 'train_pipeline', 'param_scheduler')  # variables, and tested below
            }
        )
        for name in ('', '-reference')
    )
    differing = {path: reference.get(path) for path in paper | reference if paper.get(path) != reference.get(path)}
    crop, color = (
        '.train_dataloader.dataset.pipeline.1.transforms.0',
        '.train_dataloader.dataset.pipeline.1.transforms.1',
    )
    assert differing == {
        '.model.intra_loss.mode': 'triplet',
        '.model.box_jitter.anchor': 'center',
        '.model.box_jitter.noise': (0.075, 0.30),
        '.model.box_jitter.noise_wh': (0.175, 0.70),
        '.model.box_jitter.min_iou': (0.8, 0.4),
        '.model.box_jitter.redraw': False,
        '.model.box_jitter.include_original': True,
        '.model.image_projector.dropout': 0.1,
        '.model.object_projector.dropout': 0.1,
        f'{crop}.scale': (0.1, 1.0),
        f'{color}.transforms.0.saturation': 0.2,
        '.train_dataloader.dataset.num_proposals': 50,
    }


#: Settings of each ablation that differ from the paper's.
ABLATIONS = {
    'no-intra': {'.model.intra_loss.loss_weight': 0.0},
    'no-image': {'.model.image_head.loss_weight': 0.0},
    'no-object': {'.model.object_head.loss_weight': 0.0, '.model.intra_loss.loss_weight': 0.0},
    'no-noise': {'.model.box_jitter.num_jitter': 1, '.model.box_jitter.noise': (0.0, 0.0)},
    'no-curriculum': {'.model.box_jitter.noise': (1.0, 1.0), '.model.box_jitter.min_iou': (0.3, 0.3)},
    'one-bn-group': {'.model.key_batch': 'none'},
    'random-boxes': {'.train_dataloader.dataset.proposal_file': 'proposals/train2017-random.npz'},
    'ground-truth-boxes': {
        '.train_dataloader.dataset.proposal_file': 'proposals/train2017-ground-truth.npz',
        '.train_dataloader.dataset.allow_ground_truth': True,
    },
    'few-proposals': {'.train_dataloader.dataset.num_proposals': 4},
}


def ablation_file(name):
    return ROOT / f'configs/ablations/ccop-{name}_r50_fpn_800e_coco.py'


def test_every_ablation_is_listed():
    assert {path.stem for path in CONFIGS if path.parent.name == 'ablations'} == {
        ablation_file(name).stem for name in ABLATIONS
    }


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablation_changes_only_the_listed_settings(name):
    paper = flatten(Config.fromfile(PAPER).to_dict())
    ablation = flatten(Config.fromfile(ablation_file(name)).to_dict())
    assert {path: value for path, value in ablation.items() if paper.get(path) != value} == ABLATIONS[name]
    assert paper.keys() <= ablation.keys()


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablation_file_is_one_base_and_literal_settings(name):
    # studies/ applies the settings of a file to other base configs, without reading its _base_.
    tree = ast.parse(ablation_file(name).read_text())
    assert all(isinstance(statement, ast.Assign) for statement in tree.body)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names - {'_base_', 'model', 'train_dataloader', 'dict'} == set()
    settings = {}
    exec(compile(tree, str(ablation_file(name)), 'exec'), settings)
    assert settings.pop('_base_') == ['../ccop/ccop_r50_fpn_800e_coco.py']
    settings.pop('__builtins__')
    assert flatten(settings) == ABLATIONS[name]


@pytest.mark.parametrize('name', [name for name, changes in ABLATIONS.items() if next(iter(changes))[:7] == '.model.'])
def test_ablation_reaches_the_model(name):
    cfg = Config.fromfile(ablation_file(name))
    init_default_scope('mmselfsup')
    cfg.model.update(queue_len=64)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    for path, value in ABLATIONS[name].items():
        *modules, attribute = path.removeprefix('.model.').split('.')
        assert getattr(functools.reduce(getattr, modules, model), attribute) == value


@pytest.mark.parametrize('method', ['random', 'ground-truth'])
def test_ablation_with_other_boxes_loads_its_proposals(method, tmp_path):
    for image_id in range(3):
        cv2.imwrite(str(tmp_path / f'{image_id}.png'), np.full((60, 80, 3), 90, np.uint8))
    images = [dict(id=index, file_name=f'{index}.png', width=80, height=60) for index in range(3)]
    annotations = [dict(id=1, image_id=0, category_id=1, bbox=[5, 5, 40, 30], area=1200, iscrowd=0)]
    categories = [dict(id=1, name='object')]
    json_file = tmp_path / 'instances.json'
    json_file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    dataset = Config.fromfile(ablation_file(f'{method}-boxes')).train_dataloader.dataset
    out = tmp_path / dataset.proposal_file
    out.parent.mkdir()
    boxes_file = json_file if method == 'ground-truth' else None
    generate_proposals(json_file, out, image_root=tmp_path, workers=1, annotations=boxes_file, method=method)
    dataset.update(data_root=str(tmp_path), ann_file=json_file.name, data_prefix=dict(img_path=''), pipeline=[])
    init_default_scope('mmselfsup')
    built = DATASETS.build(dataset)
    boxes = [built.get_data_info(index)['proposals'] for index in range(3)]
    if method == 'ground-truth':
        assert boxes[0].tolist() == [[5, 5, 45, 35]] and not len(boxes[1]) and not len(boxes[2])
        dataset.allow_ground_truth = False
        with pytest.raises(InputError, match='ground'):
            DATASETS.build(dataset)
    else:
        assert [len(rows) for rows in boxes] == [dataset.num_proposals] * 3


def test_moco_baseline_shares_data_optimizer_and_backbone_with_ccop():
    paper, moco = Config.fromfile(PAPER), Config.fromfile(MOCO)
    assert moco.optim_wrapper == paper.optim_wrapper
    assert dict(moco.model.backbone, out_indices=(0, 1, 2, 3)) == paper.model.backbone
    assert (moco.model.queue_len, moco.model.momentum) == (paper.model.queue_len, paper.model.momentum)
    data = dict(paper.train_dataloader, dataset=dict(paper.train_dataloader.dataset, num_proposals=0))
    assert moco.train_dataloader == data
    assert (moco.param_scheduler, moco.train_cfg) == (paper.param_scheduler, paper.train_cfg)


def test_moco_baseline_runs_a_training_step():
    cfg = Config.fromfile(MOCO)
    init_default_scope('mmselfsup')
    cfg.model.backbone.update(depth=18, base_channels=8)
    cfg.model.neck.update(in_channels=64)
    model = MODELS.build({**cfg.model, 'queue_len': 8})
    model.init_weights()
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(4, 3, 64, 64, generator=generator) * 255 for _ in range(2)]
    batch = dict(inputs=views, data_samples=[SelfSupDataSample() for _ in range(4)])
    before = model.backbone.conv1.weight.clone()
    losses = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)))
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(model.backbone.conv1.weight, before)
    assert model.queue_ptr.item() == 4


def test_reference_config_warms_up_for_10_epochs():
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop-reference_r50_fpn_800e_coco.py')
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 10)
    assert (cosine.type, cosine.begin, cosine.end, cosine.T_max) == ('CosineAnnealingLR', 10, 800, 790)


@pytest.mark.parametrize(
    'name, scale, saturation, size',
    [
        ('ccop_r50_fpn_800e_coco', (0.2, 1.0), [0.6, 1.4], 224),
        ('ccop-reference_r50_fpn_800e_coco', (0.1, 1.0), [0.8, 1.2], 224),
        ('ccop_r18_fpn_demo', (0.2, 1.0), [0.6, 1.4], 112),
    ],
)
def test_view_pipeline_matches_moco_v2_and_builds_in_batched_form(name, scale, saturation, size):
    cfg = Config.fromfile(ROOT / f'configs/ccop/{name}.py')
    init_default_scope('mmselfsup')
    load, views, pack = (TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline)
    assert (load.decode, type(views).__name__, type(pack).__name__) == (False, 'SplitTwoObjectViews', 'PackObjectViews')
    factors = [[0.6, 1.4], [0.6, 1.4], saturation, [-0.1, 0.1]]
    expected = PhotometricRecipe(factors, jitter_prob=0.8, gray_prob=0.2, blur_prob=0.5, blur_sigma=(0.1, 2.0))
    assert views.recipe == expected
    assert (views.crop.scale, views.crop.size, views.crop.ratio) == (scale, (size, size), (3 / 4, 4 / 3))
    assert (views.flip_prob, views.min_common) == (0.5, 0)


def test_per_image_pipeline_has_the_same_settings_as_the_batched_one():
    batched, per_image = (
        Config.fromfile(ROOT / f'configs/_base_/{name}.py') for name in ('coco_two_views', 'coco_two_views_per_image')
    )
    init_default_scope('mmselfsup')
    pipelines = [cfg.train_dataloader.dataset.pipeline for cfg in (batched, per_image)]
    assert pipelines[0][1]['transforms'] == pipelines[1][1]['transforms']
    assert [step['type'] for step in pipelines[1]] == ['LoadUnlabeledImage', 'TwoObjectViews', 'PackSelfSupInputs']
    assert all(TRANSFORMS.build(step) for step in pipelines[1])
    for cfg in (batched, per_image):
        del cfg.train_dataloader.dataset['pipeline']
    assert batched.train_dataloader == per_image.train_dataloader


def top_level_configs():
    for folder in ('ccop', 'ablations', 'baselines', 'transfer'):
        yield from sorted((ROOT / 'configs' / folder).rglob('*.py'))


@pytest.mark.slow
@pytest.mark.parametrize('path', top_level_configs(), ids=lambda path: path.stem)
def test_base_batch_size_is_that_of_the_learning_rate(path):
    cfg = Config.fromfile(path)
    if cfg.get('optim_wrapper') is None:  # for testing only
        assert path.stem == 'keypoint-rcnn_r50-fpn_torchvision'
        return
    num_gpus = 1 if 'demo' in path.stem else 8
    assert cfg.auto_scale_lr.base_batch_size == num_gpus * cfg.train_dataloader.batch_size
    assert not cfg.auto_scale_lr.enable
