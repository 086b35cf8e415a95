import json
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

from ccop_mm.datasets.scenes import write_scenes
from ccop_mm.hosts import prepare_config
from ccop_mm.weights.formats import TARGETS
from ccop_mm.weights.keys import pair_keys, shapes

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
    """mmdet's, as its Runner has it, for this file alone."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build_without_memory(model):
    with torch.device('meta'):
        return MODELS.build(model)


def names(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


CCOP = [path for path in SUITE if '_ccop-800e_' in path.stem]


def test_each_protocol_has_four_initializations_that_differ_in_nothing_else():
    protocols = {path.stem.replace('_ccop-800e_', '_{}_'): path.parent for path in CCOP if 'cocofmt' not in path.stem}
    assert len(protocols) == 6
    for protocol, folder in protocols.items():
        cfgs = [read_config(folder / f'{protocol.format(init)}.py') for init in INITS]
        inits = [cfg.model.pop('init_cfg') for cfg in cfgs]
        assert [init and init.type for init in inits] == ['CCOPPretrained', *['BackbonePretrained'] * 2, None]
        assert inits[2].checkpoint == f'torchvision://resnet{cfgs[0].model.backbone.depth}'
        assert all(cfg.to_dict() == cfgs[0].to_dict() for cfg in cfgs)
        # One base and one line.
        for init in INITS:
            lines = (folder / f'{protocol.format(init)}.py').read_text().splitlines()
            assert [line.partition(' =')[0] for line in lines if line and line[0] != '#'] == ['_base_', 'model']


@names([*CCOP, DEMO])
def test_the_named_checkpoint_is_the_end_of_a_pretraining_config_and_fits(path):
    cfg = read_config(path)
    folder, file = Path(cfg.model.init_cfg.checkpoint).parts[-2:]
    source_cfg = read_config(CONFIGS / 'ccop' / f'{folder}.py')
    assert file == f'epoch_{source_cfg.train_cfg.max_epochs}.pth'
    # The demo's queues follow the data set; no queue transfers.
    source_cfg.model.update(queue_len=8, object_queue_len=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        source = build_without_memory(source_cfg.model)
    detector = build_without_memory(cfg.model)
    first_level = detector.neck.start_level
    levels = len(detector.neck.lateral_convs)
    pairs = pair_keys(shapes(detector.state_dict()), shapes(source.state_dict()), first_level, levels)
    # Lateral convolution and output convolution with its norm layer each, seven tensors each with counters.
    assert levels == 4 - first_level
    assert len(pairs) == len(detector.backbone.state_dict()) + levels * 2 * 6


@names([*CCOP, DEMO])
def test_every_norm_layer_is_synchronized_and_trains(path):
    detector = build_without_memory(read_config(path).model).train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    # Four stages and the stem, each with norms; two for each level of the FPN; and those of the heads.
    ours = {18: 20, 50: 53, 101: 104}[detector.backbone.depth]
    heads = {'MaskRCNN': 8, 'FasterRCNN': 8 - 4, 'RetinaNet': 0}[type(detector).__name__] if path != DEMO else 0
    fpn = 8  # RetinaNet has one lateral less, and two convolutions more on top
    assert len(norms) == ours + fpn + heads
    assert all(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_retinanet_has_group_normalization_in_its_heads():
    head = build_without_memory(read_config(RETINANET).model).bbox_head
    norms = [module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 8
    assert all(norm.num_groups == 32 for norm in norms)


@pytest.mark.parametrize(
    ('path', 'rate', 'iterations', 'steps', 'warm_up'),
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
def test_schedules_are_the_papers(path, rate, iterations, steps, warm_up):
    cfg = read_config(path)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=rate, momentum=0.9, weight_decay=0.0001)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', iterations)
    warming, stepping = cfg.param_scheduler
    assert (warming.begin, warming.end, warming.start_factor, warming.by_epoch) == (0, warm_up, 0.001, False)
    assert (stepping.milestones, stepping.gamma, stepping.by_epoch) == (steps, 0.1, False)
    assert stepping.end == iterations
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


def test_voc_trains_on_both_years_and_tests_on_2007():
    cfg = read_config(VOC)
    train = cfg.train_dataloader.dataset.datasets
    assert [part.ann_file for part in train] == [f'VOC{year}/ImageSets/Main/trainval.txt' for year in (2007, 2012)]
    assert cfg.val_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type='CocoMetric', metric='bbox')
    assert cfg.model.roi_head.bbox_head.num_classes == 20


def test_no_norm_layer_is_decayed():
    cfg = read_config(R50)
    detector = build_without_memory(cfg.model)
    groups = build_optim_wrapper(detector, cfg.optim_wrapper).optimizer.param_groups
    free = {id(group['params'][0]) for group in groups if group['weight_decay'] == 0}
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert free == {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert {group['weight_decay'] for group in groups} == {0, 1e-4}
    assert {group['lr'] for group in groups} == {0.02}


# One step and one evaluation of every config, and what the detector holds before the step.


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Files to start from, by depth and initialization, all with the weights of one CCOP encoder of that depth."""
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
    """Photos and instances: real ones, or synthetic scenes where there are none."""
    try:
        folder = request.getfixturevalue('coco_cc31')
    except pytest.skip.Exception:
        root = tmp_path_factory.mktemp('scenes')
        return root / 'images', write_scenes(root, num_train=2, num_val=2, size=(64, 96))['val']
    return folder / 'images', folder / 'annotations/instances.json'


@pytest.fixture(scope='module')
def voc(request, tmp_path_factory):
    """Photos and boxes of VOC's classes, in COCO json: real ones, or synthetic scenes whose objects are renamed."""
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


class Look(Hook):
    """Keeps what the detector makes of some images once it has been initialized, and the losses of the steps."""

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


def is_watched(key, init):
    return '.running_' in key or (init != 'random' and key.endswith(('conv.weight', 'conv1.weight', 'conv2.weight')))


IMAGES = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@names(SUITE)
def test_trains_a_step_and_evaluates_from_the_weights_it_names(path, checkpoints, coco, voc, tmp_path, monkeypatch):
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
    look = Look()
    runner.register_hook(look, 'VERY_LOW')
    runner.train()

    encoder = pretraining(depth)
    with torch.no_grad():
        stages = encoder.backbone(IMAGES)
        pyramid = encoder.neck(stages)
    first = runner.model.neck.start_level
    same_stages = [
        torch.allclose(found, true, rtol=0, atol=1e-6) for found, true in zip(look.stages, stages, strict=True)
    ]
    same_levels = [
        torch.allclose(found, true, rtol=0, atol=1e-6)
        for found, true in zip(look.pyramid, pyramid[first:], strict=False)
    ]
    assert same_stages == [init != 'random'] * 4
    assert same_levels == [init == 'ccop-800e'] * (4 - first)
    assert pyramid[0].std() > 0.01
    # The step moved everything that trains, running statistics included. (From random weights most of the ResNet has no
    # gradient yet: mmdet lets the last norm layer of each block begin at 0.)
    state = runner.model.state_dict()
    assert len(look.losses) == 1 and look.losses[0] < float('inf')
    still = {key for key, tensor in look.state.items() if torch.equal(tensor, state[key])}
    moving = [key for key in state if key.startswith(('backbone.', 'neck.')) and is_watched(key, init)]
    assert len(moving) > 50
    assert not still & set(moving)
    kinds = {'bbox', 'segm'} if 'mask' in path.stem else {'bbox'}
    scores = runner.message_hub.log_scalars
    assert {f'val/coco/{kind}_mAP{iou}' for kind in kinds for iou in ('', '_50', '_75')} <= set(scores)


def demo(images, annotations, work_dir):
    """The demo's config on other data, by the options that a command line would give, with a checkpoint to start from.

    Args:
        images (Path): Folder of photos.
        annotations (dict[str, Path]): Annotation files under ``'train'`` and ``'val'``.
        work_dir (Path): Where the checkpoint and all output go.
    """
    cfg = read_config(DEMO)
    classes = [category['name'] for category in json.loads(annotations['val'].read_text())['categories']]
    options = {
        'model.init_cfg.checkpoint': str(work_dir / 'pretrained.pth'),
        'model.roi_head.bbox_head.num_classes': len(classes),
        'model.roi_head.mask_head.num_classes': len(classes),
        # Random weights are sure of nothing; without a threshold there is something to evaluate.
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5,
        'train_cfg.max_epochs': 1,
        'val_evaluator.ann_file': str(annotations['val']),
        'train_dataloader.dataset.pipeline.2.scale': (96, 64),
        'val_dataloader.dataset.pipeline.1.scale': (96, 64),
        'default_hooks.checkpoint': None,
    }
    for part, split in (('train', 'train'), ('val', 'val')):
        options[f'{part}_dataloader.dataset.data_root'] = ''
        options[f'{part}_dataloader.dataset.ann_file'] = str(annotations[split])
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


@pytest.fixture(params=['scenes', 'photos'])
def small_demo(request, tmp_path):
    if request.param == 'scenes':
        return demo(tmp_path / 'images', write_scenes(tmp_path, num_train=4, num_val=4, size=(64, 96)), tmp_path)
    folder = request.getfixturevalue('coco_cc31')
    return demo(folder / 'images', dict.fromkeys(('train', 'val'), folder / 'annotations/instances.json'), tmp_path)


def test_demo_trains_a_step_and_evaluates(small_demo, monkeypatch):
    # mmengine formats the config four times at a second each.
    monkeypatch.setattr(Config, 'pretty_text', '')
    runner = Runner.from_cfg(small_demo)
    runner.train()
    before = torch.load(small_demo.model.init_cfg.checkpoint, weights_only=True)['state_dict']
    after = runner.model.state_dict()
    # Nothing is frozen, running statistics included.
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert {'val/coco/bbox_mAP', 'val/coco/segm_mAP'} <= set(runner.message_hub.log_scalars)


def evaluate_truth(dataloader, evaluator):
    """The metrics of detections that are the truth itself: classes, ids and scales belong together if they are 1."""
    loader = Runner.build_dataloader(dataloader)
    evaluator = Evaluator(evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        for sample in batch['data_samples']:
            truth = sample.gt_instances
            detections = dict(bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth)))
            if 'masks' in truth:
                detections['masks'] = torch.from_numpy(truth.masks.to_ndarray())
            sample.pred_instances = InstanceData(**detections)
        evaluator.process([sample.to_dict() for sample in batch['data_samples']])
    return evaluator.evaluate(len(loader.dataset))


def test_demo_evaluates_the_truth_as_perfect(small_demo):
    small_demo.val_dataloader.dataset.indices = None
    metrics = evaluate_truth(small_demo.val_dataloader, small_demo.val_evaluator)
    assert metrics['coco/bbox_mAP'] == pytest.approx(1, abs=1e-3)
    assert metrics['coco/segm_mAP'] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('form', ['', '-cocofmt'])
def test_voc_evaluates_the_truth_as_perfect(form, voc, tmp_path):
    cfg = read_config(VOC.with_name(f'{VOC.stem}{form}.py'))
    if form:
        content = json.loads(voc[1].read_text())
        content['images'] = content['images'][:4]
        kept = {image['id'] for image in content['images']}
        content['annotations'] = [one for one in content['annotations'] if one['image_id'] in kept]
        (tmp_path / 'four.json').write_text(json.dumps(content))
        cfg.merge_from_dict(coco_data(cfg, voc[0], tmp_path / 'four.json', num_photos=4))
    else:
        write_voc_tree(tmp_path / 'VOCdevkit', *voc, num_photos=2)
        cfg.merge_from_dict(voc_data(cfg, tmp_path / 'VOCdevkit'))
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    metrics = evaluate_truth(cfg.val_dataloader, cfg.val_evaluator)
    assert [metrics[f'coco/bbox_mAP{iou}'] for iou in ('', '_50', '_75')] == pytest.approx([1, 1, 1], abs=1e-3)
