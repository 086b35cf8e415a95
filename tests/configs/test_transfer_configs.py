import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from small_transfer import (
    CONFIGS,
    coco_data,
    make_small,
    narrow_model,
    pretraining,
    read_config,
    voc_data,
    write_voc_tree,
)
from synthetic_scenes.scenes import write_scenes

from ccop_mm.compat import prepare_config
from ccop_mm.weights.formats import TARGETS
from ccop_mm.weights.key_mapping import shapes
from ccop_mm.weights.pairing import pair_keys

DEMO = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-demo.py'
SUITE = sorted(
    path
    for folder in ('mask_rcnn', 'retinanet', 'faster_rcnn')
    for path in (CONFIGS / 'transfer' / folder).glob('*.py')
    if path != DEMO
)
R50 = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py'
RETINANET = CONFIGS / 'transfer/retinanet/retinanet_r50-fpn_ccop-800e_1x_coco.py'
VOC = CONFIGS / 'transfer/faster_rcnn/faster-rcnn_r50-fpn_ccop-800e_24k_voc0712.py'
INITS = ('ccop-800e', 'mocov2', 'imagenet-sup', 'random')


@pytest.fixture(scope='module', autouse=True)
def scope():
    """Sets the default scope to mmdet in this module, as the runner of an mmdet config does."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build_on_meta(model):
    with torch.device('meta'):
        return MODELS.build(model)


def parametrize_paths(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


CCOP = [path for path in SUITE if '_ccop-800e_' in path.stem]


@pytest.mark.slow
def test_configs_of_a_protocol_differ_only_in_init_cfg():
    protocols = {path.stem.replace('_ccop-800e_', '_{}_'): path.parent for path in CCOP if 'cocofmt' not in path.stem}
    assert len(protocols) == 6
    for protocol, folder in protocols.items():
        cfgs = [read_config(folder / f'{protocol.format(init)}.py') for init in INITS]
        inits = [cfg.model.pop('init_cfg') for cfg in cfgs]
        assert [init and init.type for init in inits] == ['CCOPPretrained', *['BackbonePretrained'] * 2, None]
        assert inits[2].checkpoint == f'torchvision://resnet{cfgs[0].model.backbone.depth}'
        assert all(cfg.to_dict() == cfgs[0].to_dict() for cfg in cfgs)
        # Each file contains only the base and the initialization.
        for init in INITS:
            lines = (folder / f'{protocol.format(init)}.py').read_text().splitlines()
            assert [line.partition(' =')[0] for line in lines if line and line[0] != '#'] == ['_base_', 'model']


@parametrize_paths([*CCOP, DEMO])
def test_checkpoint_is_the_last_epoch_of_a_pretraining_config_and_its_weights_fit(path):
    cfg = read_config(path)
    folder, file = Path(cfg.model.init_cfg.checkpoint).parts[-2:]
    source_cfg = read_config(CONFIGS / 'ccop' / f'{folder}.py')
    assert file == f'epoch_{source_cfg.train_cfg.max_epochs}.pth'
    # Replaces the demo's 'auto'. Queues are not transferred.
    source_cfg.model.update(queue_len=8, object_queue_len=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        source = build_on_meta(source_cfg.model)
    detector = build_on_meta(cfg.model)
    first_level = detector.neck.start_level
    levels = len(detector.neck.lateral_convs)
    pairing = pair_keys(shapes(detector.state_dict()), shapes(source.state_dict()), lambda missing: missing)
    # Each level has a lateral and an output convolution, with 6 tensors each: weight, and 5 of the norm layer.
    assert levels == 4 - first_level and pairing.first_level == first_level
    assert len(pairing.sources) == len(detector.backbone.state_dict()) + levels * 2 * 6


@parametrize_paths([*CCOP, DEMO])
def test_all_norm_layers_are_synchronized_and_train(path):
    detector = build_on_meta(read_config(path).model).train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    backbone = {18: 20, 50: 53, 101: 104}[detector.backbone.depth]
    heads = {'MaskRCNN': 8, 'FasterRCNN': 8 - 4, 'RetinaNet': 0}[type(detector).__name__] if path != DEMO else 0
    fpn = 8  # two per level; RetinaNet has three levels with two each, and P6 and P7 with one each
    assert len(norms) == backbone + fpn + heads
    assert all(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_retinanet_heads_use_group_normalization():
    head = build_on_meta(read_config(RETINANET).model).bbox_head
    norms = [module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 8
    assert all(norm.num_groups == 32 for norm in norms)


@pytest.mark.parametrize(
    ('path', 'lr', 'iterations', 'steps', 'warmup'),
    [
        (R50, 0.02, 90000, [60000, 80000], 1000),
        (R50.with_name(R50.name.replace('r50', 'r18')), 0.02, 90000, [60000, 80000], 1000),
        (R50.with_name(R50.name.replace('r50', 'r101')), 0.02, 90000, [60000, 80000], 1000),
        (R50.with_name(R50.name.replace('1x_coco', '27k_coco-10pct')), 0.02, 27000, [18000, 24000], 1000),
        (RETINANET, 0.01, 90000, [60000, 80000], 1000),
        (VOC, 0.02, 24000, [18000, 22000], 100),
        (VOC.with_name(f'{VOC.stem}-cocofmt.py'), 0.02, 24000, [18000, 22000], 100),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else '',
)
def test_schedule_matches_the_paper(path, lr, iterations, steps, warmup):
    cfg = read_config(path)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0.0001)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', iterations)
    linear, multi_step = cfg.param_scheduler
    assert (linear.begin, linear.end, linear.start_factor, linear.by_epoch) == (0, warmup, 0.001, False)
    assert (multi_step.milestones, multi_step.gamma, multi_step.by_epoch) == (steps, 0.1, False)
    assert multi_step.end == iterations
    train = cfg.train_dataloader.dataset
    pipeline = train.datasets[0].pipeline if 'datasets' in train else train.pipeline
    (resize,) = [step for step in pipeline if 'Resize' in step.type]
    shorts = [640, 672, 704, 736, 768, 800] if 'voc' not in path.stem else list(range(480, 801, 32))
    assert resize == dict(type='RandomChoiceResize', scales=[(1333, short) for short in shorts], keep_ratio=True)
    (resize,) = [step for step in cfg.test_dataloader.dataset.pipeline if 'Resize' in step.type]
    assert resize == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert cfg.model.backbone.init_cfg is None
    assert cfg.default_scope == 'mmdet'
    assert cfg.default_hooks.checkpoint.type == 'mmselfsup.SafeCheckpointHook'
    assert not cfg.default_hooks.checkpoint.by_epoch and not cfg.log_processor.by_epoch
    assert not cfg.default_hooks.logger.log_metric_by_epoch


def test_voc_config_trains_on_both_years_and_tests_on_2007():
    cfg = read_config(VOC)
    train = cfg.train_dataloader.dataset.datasets
    assert [dataset.ann_file for dataset in train] == [
        f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)
    ]
    assert cfg.val_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type='CocoMetric', metric='bbox')
    assert cfg.model.roi_head.bbox_head.num_classes == 20


def test_norm_layers_have_no_weight_decay():
    cfg = read_config(R50)
    detector = build_on_meta(cfg.model)
    groups = build_optim_wrapper(detector, cfg.optim_wrapper).optimizer.param_groups
    not_decayed = {id(group['params'][0]) for group in groups if group['weight_decay'] == 0}
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert not_decayed == {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert {group['weight_decay'] for group in groups} == {0, 1e-4}
    assert {group['lr'] for group in groups} == {0.02}


# One training iteration and one evaluation of every config.


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Writes checkpoints by depth and initialization, all with the weights of the same CCOP encoder of that depth."""
    folder = tmp_path_factory.mktemp('checkpoints')
    files = {}
    for depth in (18, 50, 101):
        state = pretraining(depth).state_dict()
        plain = {TARGETS['torchvision'](key): tensor for key, tensor in state.items() if key.startswith('backbone.')}
        contents = {
            'ccop-800e': state,
            'mocov2': {f'module.encoder_q.{key}': tensor for key, tensor in plain.items()},
            'imagenet-sup': {**plain, 'fc.weight': torch.zeros(1000, 8), 'fc.bias': torch.zeros(1000)},
        }
        for init, content in contents.items():
            files[depth, init] = str(folder / f'{init}_r{depth}.pth')
            torch.save(dict(state_dict=content), files[depth, init])
    return files


@pytest.fixture(scope='module')
def coco(request, tmp_path_factory):
    """Returns an image folder and instance annotations: COCO images, or synthetic scenes if these are missing."""
    try:
        folder = request.getfixturevalue('coco_cc31')
    except pytest.skip.Exception:
        root = tmp_path_factory.mktemp('scenes')
        return root / 'images', write_scenes(root, num_train=2, num_val=2, size=(64, 96))['val']
    return folder / 'images', folder / 'annotations/instances.json'


@pytest.fixture(scope='module')
def voc(request, tmp_path_factory):
    """Returns an image folder and a COCO json with VOC's class names: VOC images, or synthetic scenes if missing."""
    try:
        folder = request.getfixturevalue('voc_animals')
    except pytest.skip.Exception:
        root = tmp_path_factory.mktemp('voc_scenes')
        annotations = write_scenes(root, num_train=2, num_val=4, size=(64, 96))['val']
        content = json.loads(annotations.read_text())
        for category, name in zip(content['categories'], ('cat', 'dog', 'cow', 'horse', 'sheep', 'bird'), strict=True):
            category['name'] = name
        annotations.write_text(json.dumps(content))
        return root / 'images', annotations
    return folder / 'val', folder / 'annotations/val.json'


class RecordHook(Hook):
    """Records features and weights of the initialized detector and the losses of all iterations."""

    def __init__(self):
        self.losses = []

    def before_train(self, runner):
        model = runner.model.eval()
        with torch.no_grad():
            self.stages = model.backbone(IMAGES)
            self.pyramid = model.neck(self.stages)
        self.state = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def must_change(key, init):
    """Returns whether a training iteration must change a tensor: statistics, and convolutions unless random."""
    return '.running_' in key or (init != 'random' and key.endswith(('conv.weight', 'conv1.weight', 'conv2.weight')))


IMAGES = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@parametrize_paths(SUITE)
def test_config_loads_its_weights_trains_an_iteration_and_evaluates(
    path, checkpoints, coco, voc, tmp_path, monkeypatch
):
    # mmengine formats the config four times at a second each.
    monkeypatch.setattr(Config, 'pretty_text', '')
    cfg = read_config(path)
    depth = cfg.model.backbone.depth
    (init,) = [name for name in INITS if f'_{name}_' in path.stem]
    if 'voc' not in path.stem or 'cocofmt' in path.stem:
        images, annotations = voc if 'voc' in path.stem else coco
        data = coco_data(cfg, images, annotations)
    else:
        write_voc_tree(tmp_path / 'VOCdevkit', *voc)
        data = voc_data(cfg, tmp_path / 'VOCdevkit')
    num_classes = len(data.get('train_dataloader.dataset.metainfo.classes', range(20)))
    options = {**narrow_model(cfg, num_classes), **data}
    if init != 'random':
        options['model.init_cfg.checkpoint'] = checkpoints[depth, init]
    runner = Runner.from_cfg(make_small(path, options, tmp_path / 'work'))
    record = RecordHook()
    runner.register_hook(record, 'VERY_LOW')
    runner.train()

    encoder = pretraining(depth)
    with torch.no_grad():
        stages = encoder.backbone(IMAGES)
        pyramid = encoder.neck(stages)
    first = runner.model.neck.start_level
    same_stages = [
        torch.allclose(found, expected, rtol=0, atol=1e-6)
        for found, expected in zip(record.stages, stages, strict=True)
    ]
    same_levels = [
        torch.allclose(found, expected, rtol=0, atol=1e-6)
        for found, expected in zip(record.pyramid, pyramid[first:], strict=False)
    ]
    assert same_stages == [init != 'random'] * 4
    assert same_levels == [init == 'ccop-800e'] * (4 - first)
    assert pyramid[0].std() > 0.01
    # The iteration changed all weights and running statistics. (From random weights most convolutions of the ResNet
    # have no gradient yet because of mmdet's zero-init residual.)
    state = runner.model.state_dict()
    assert len(record.losses) == 1 and math.isfinite(record.losses[0])
    unchanged = {key for key, tensor in record.state.items() if torch.equal(tensor, state[key])}
    trained = {key for key in state if key.startswith(('backbone.', 'neck.')) and must_change(key, init)}
    assert len(trained) > 50
    assert not unchanged & trained
    kinds = {'bbox', 'segm'} if 'mask' in path.stem else {'bbox'}
    scores = runner.message_hub.log_scalars
    assert {f'val/coco/{kind}_mAP{iou}' for kind in kinds for iou in ('', '_50', '_75')} <= set(scores)


def demo_config(images, annotations, work_dir):
    """Returns the demo config on other data, set as by ``--cfg-options``, and writes a checkpoint to initialize from.

    Args:
        images (Path): Folder of the images.
        annotations (dict[str, Path]): Annotation files of ``'train'`` and ``'val'``.
        work_dir (Path): Folder for the checkpoint and all output.
    """
    cfg = read_config(DEMO)
    classes = [category['name'] for category in json.loads(annotations['val'].read_text())['categories']]
    options = {
        'model.init_cfg.checkpoint': str(work_dir / 'pretrained.pth'),
        'model.roi_head.bbox_head.num_classes': len(classes),
        'model.roi_head.mask_head.num_classes': len(classes),
        # Random weights give low scores; without a threshold there are detections to evaluate.
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5,
        'train_cfg.max_epochs': 1,
        'val_evaluator.ann_file': str(annotations['val']),
        'train_dataloader.dataset.pipeline.2.scale': (96, 64),
        'val_dataloader.dataset.pipeline.1.scale': (96, 64),
        'default_hooks.checkpoint': None,
    }
    for part in ('train', 'val'):
        options[f'{part}_dataloader.dataset.data_root'] = ''
        options[f'{part}_dataloader.dataset.ann_file'] = str(annotations[part])
        options[f'{part}_dataloader.dataset.data_prefix.img'] = str(images)
        options[f'{part}_dataloader.dataset.metainfo.classes'] = classes
        options[f'{part}_dataloader.dataset.indices'] = 4
    cfg.merge_from_dict(options)
    prepare_config(cfg)
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    encoder = MODELS.build(cfg.model)
    state = {key: value for key, value in encoder.state_dict().items() if key.startswith(('backbone.', 'neck.'))}
    torch.save(dict(state_dict=state), work_dir / 'pretrained.pth')
    return cfg


@pytest.fixture(params=['scenes', 'coco'])
def small_demo(request, tmp_path):
    if request.param == 'scenes':
        return demo_config(tmp_path / 'images', write_scenes(tmp_path, num_train=4, num_val=4, size=(64, 96)), tmp_path)
    folder = request.getfixturevalue('coco_cc31')
    return demo_config(
        folder / 'images', dict.fromkeys(('train', 'val'), folder / 'annotations/instances.json'), tmp_path
    )


@pytest.mark.slow
def test_demo_config_trains_an_epoch_and_evaluates(small_demo, monkeypatch):
    # mmengine formats the config four times at a second each.
    monkeypatch.setattr(Config, 'pretty_text', '')
    runner = Runner.from_cfg(small_demo)
    runner.train()
    before = torch.load(small_demo.model.init_cfg.checkpoint, weights_only=True)['state_dict']
    after = runner.model.state_dict()
    # No weight or running statistic is frozen.
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert {'val/coco/bbox_mAP', 'val/coco/segm_mAP'} <= set(runner.message_hub.log_scalars)


def evaluate_ground_truth(dataloader, evaluator):
    """Evaluates the ground truth as detections; AP is 1 only if classes, image ids and scales are consistent."""
    loader = Runner.build_dataloader(dataloader)
    evaluator = Evaluator(evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        for sample in batch['data_samples']:
            gt = sample.gt_instances
            detections = dict(bboxes=gt.bboxes.tensor, labels=gt.labels, scores=torch.ones(len(gt)))
            if 'masks' in gt:
                detections['masks'] = torch.from_numpy(gt.masks.to_ndarray())
            sample.pred_instances = InstanceData(**detections)
        evaluator.process([sample.to_dict() for sample in batch['data_samples']])
    return evaluator.evaluate(len(loader.dataset))


def test_demo_config_gives_ap_1_to_the_ground_truth(small_demo):
    small_demo.val_dataloader.dataset.indices = None
    metrics = evaluate_ground_truth(small_demo.val_dataloader, small_demo.val_evaluator)
    assert metrics['coco/bbox_mAP'] == pytest.approx(1, abs=1e-3)
    assert metrics['coco/segm_mAP'] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('suffix', ['', '-cocofmt'])
def test_voc_config_gives_ap_1_to_the_ground_truth(suffix, voc, tmp_path):
    cfg = read_config(VOC.with_name(f'{VOC.stem}{suffix}.py'))
    if suffix:
        content = json.loads(voc[1].read_text())
        content['images'] = content['images'][:4]
        kept = {image['id'] for image in content['images']}
        content['annotations'] = [annotation for annotation in content['annotations'] if annotation['image_id'] in kept]
        (tmp_path / 'four.json').write_text(json.dumps(content))
        cfg.merge_from_dict(coco_data(cfg, voc[0], tmp_path / 'four.json', num_images=4))
    else:
        write_voc_tree(tmp_path / 'VOCdevkit', *voc, num_images=2)
        cfg.merge_from_dict(voc_data(cfg, tmp_path / 'VOCdevkit'))
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    metrics = evaluate_ground_truth(cfg.val_dataloader, cfg.val_evaluator)
    assert [metrics[f'coco/bbox_mAP{iou}'] for iou in ('', '_50', '_75')] == pytest.approx([1, 1, 1], abs=1e-3)
