import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from ccop_mm.datasets.scenes import write_scenes
from ccop_mm.hosts import prepare_config
from ccop_mm.weights.keys import pair_keys, shapes

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TRANSFERS = sorted((CONFIGS / 'transfer/mask_rcnn').glob('*.py'))
R50 = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py'
DEMO = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-demo.py'


@pytest.fixture(scope='module', autouse=True)
def scope():
    """mmdet's, as its Runner has it, for this file alone."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build_without_memory(model):
    with torch.device('meta'):
        return MODELS.build(model)


@pytest.mark.parametrize('path', TRANSFERS, ids=lambda path: path.stem)
def test_the_named_checkpoint_is_the_end_of_a_pretraining_config_and_fits(path):
    cfg = Config.fromfile(path)
    folder, file = Path(cfg.model.init_cfg.checkpoint).parts[-2:]
    pretraining = Config.fromfile(CONFIGS / 'ccop' / f'{folder}.py')
    assert file == f'epoch_{pretraining.train_cfg.max_epochs}.pth'
    # The demo's queues follow the data set; no queue transfers.
    pretraining.model.update(queue_len=8, object_queue_len=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        source = build_without_memory(pretraining.model)
    detector = build_without_memory(cfg.model)
    pairs = pair_keys(shapes(detector.state_dict()), shapes(source.state_dict()))
    assert len(pairs) == len([*detector.backbone.state_dict(), *detector.neck.state_dict()])


@pytest.mark.parametrize('path', TRANSFERS, ids=lambda path: path.stem)
def test_every_norm_layer_is_synchronized_and_trains(path):
    cfg = Config.fromfile(path)
    detector = build_without_memory(cfg.model).train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    # Four stages and the stem, each with norms; and eight in the FPN.
    assert len(norms) == {18: 20, 50: 53}[cfg.model.backbone.depth] + 8
    assert all(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_r50_follows_the_papers_protocol():
    cfg = Config.fromfile(R50)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
    assert cfg.train_cfg.max_epochs == 12
    warmup, steps = cfg.param_scheduler
    assert (warmup.begin, warmup.end, warmup.by_epoch) == (0, 1000, False)
    assert (steps.milestones, steps.gamma, steps.end) == ([8, 11], 0.1, 12)
    (resize,) = [step for step in cfg.train_dataloader.dataset.pipeline if 'Resize' in step.type]
    assert resize == dict(
        type='RandomChoiceResize',
        scales=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)],
        keep_ratio=True,
    )
    assert cfg.model.backbone.init_cfg is None
    assert cfg.default_scope == 'mmdet'


def test_r50_decays_all_weights_but_those_of_norm_layers():
    cfg = Config.fromfile(R50)
    detector = build_without_memory(cfg.model)
    groups = build_optim_wrapper(detector, cfg.optim_wrapper).optimizer.param_groups
    free = {id(group['params'][0]) for group in groups if group['weight_decay'] == 0}
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert free == {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert {group['weight_decay'] for group in groups} == {0, 1e-4}
    assert {group['lr'] for group in groups} == {0.02}


def demo(images, annotations, work_dir):
    """The demo's config on other data, by the options that a command line would give, with a checkpoint to start from.

    Args:
        images (Path): Folder of photos.
        annotations (dict[str, Path]): Annotation files under ``'train'`` and ``'val'``.
        work_dir (Path): Where the checkpoint and all output go.
    """
    cfg = Config.fromfile(DEMO)
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


def test_demo_evaluates_the_truth_as_perfect(small_demo):
    """Classes, ids and scale of predictions and annotations belong together."""
    small_demo.val_dataloader.dataset.indices = None
    loader = Runner.build_dataloader(small_demo.val_dataloader)
    evaluator = Evaluator(small_demo.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        for sample in batch['data_samples']:
            truth = sample.gt_instances
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
                masks=torch.from_numpy(truth.masks.to_ndarray()),
            )
        evaluator.process(batch['data_samples'])
    metrics = evaluator.evaluate(len(loader.dataset))
    assert metrics['coco/bbox_mAP'] == pytest.approx(1, abs=1e-3)
    assert metrics['coco/segm_mAP'] == pytest.approx(1, abs=1e-3)
