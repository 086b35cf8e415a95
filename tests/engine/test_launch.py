import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.utils._pytree import tree_flatten

from ccop_mm.engine import launch
from ccop_mm.errors import InputError
from ccop_mm.proposals.sources import image_id_of
from ccop_mm.proposals.store import ProposalStore

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
default_scope = 'mmselfsup'
custom_imports = dict(imports=['ccop_mm'])
model = dict(
    type='CCOP',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1),
    neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    image_projector=dict(type='ProjectionMLP', in_channels=64, hid_channels=32),
    object_projector=dict(type='ProjectionMLP', in_channels=784, hid_channels=32),
    queue_len=32,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='EpochIndexSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ProposalDataset',
        data_root={root!r},
        proposal_file='proposals.npz',
        pipeline=[
            dict(type='LoadPhoto'),
            dict(type='TwoObjectViews', transforms=[dict(type='ObjectResizedCrop', size=64), dict(type='ObjectFlip')]),
            dict(type='PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
        ],
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', interval=1),
    logger=dict(type='LoggerHook', interval=1),
    sampler_seed=dict(type='IterationSeedHook'),
)
custom_hooks = [dict(type='SpatialCurriculumHook')]
randomness = dict(seed=5)
log_level = 'WARNING'
"""


@pytest.fixture
def config(tmp_path):
    """A small pre-training run on eight photos; returns the config's path."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(8):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        boxes = [[x, y, x + 30, y + 30] for x in (0, 30, 60) for y in (0, 40)][: number % 4 + 1]
        entries.append((image_id_of(name), name, (70, 90), boxes))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    path = tmp_path / 'small.py'
    path.write_text(CONFIG.format(root=str(tmp_path)))
    return path


def arguments(config, **changes):
    defaults = dict(work_dir=str(config.parent / 'work'), cfg_options={}, launcher='none', local_rank=0, amp=False)
    return argparse.Namespace(config=str(config), **{**defaults, **changes})


def test_trains_and_resumes(config):
    whole = launch.train(launch.load_config(arguments(config)))
    assert whole.iter == 6
    options = {'train_cfg.max_epochs': 2, 'param_scheduler': []}
    launch.train(launch.load_config(arguments(config, work_dir=str(config.parent / 'cut'), cfg_options=options)))
    cfg = launch.load_config(arguments(config, work_dir=str(config.parent / 'cut')))
    launch.set_resume(cfg, 'auto')
    resumed = launch.train(cfg)
    assert resumed.iter == 6
    assert resumed.model.encoder_k.steps == 6, 'the key encoder goes on, it is not copied again'
    assert resumed.model.box_jitter.progress == 5 / 6
    assert torch.load(config.parent / 'cut' / 'epoch_3.pth', weights_only=True)['meta']['epoch'] == 3


def history(runner):
    """Every logged loss of the run so far, and what is in its last checkpoint, flat."""
    # Ends the workers now; once the runner is garbage, torch waits five seconds for each.
    runner.train_dataloader._iterator = None
    scalars = runner.message_hub.log_scalars
    names = [name for name in scalars if 'loss' in name or name in ('train/lr', 'train/zeta')]
    checkpoint = torch.load(Path(runner.work_dir, 'epoch_3.pth'), weights_only=True)
    state = {name: checkpoint[name] for name in ('state_dict', 'optimizer', 'param_schedulers')}
    return {name: scalars[name].data[0].tolist() for name in names}, tree_flatten(state)[0]


def test_a_resumed_run_equals_the_whole_run_to_the_last_bit(config):
    # No seed in the config: it has to come from the checkpoint. Dropout draws from the process' own generator.
    options = {
        'randomness.seed': None,
        'model.image_projector.dropout': 0.1,
        'model.object_projector.dropout': 0.1,
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'experiment_name': 'whole',
    }
    whole = launch.train(launch.load_config(arguments(config, cfg_options=options)))
    losses, state = history(whole)
    assert losses.keys() >= {'train/loss', 'train/loss_img', 'train/loss_obj', 'train/loss_intra', 'train/zeta'}
    assert len(losses['train/loss']) == 6 and len(state) > 200
    for workers in (0, 2):
        work_dir = config.parent / f'resumed{workers}'
        work_dir.mkdir()
        shutil.copy(Path(whole.work_dir, 'epoch_1.pth'), work_dir)
        options |= {
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': workers > 0,
            'experiment_name': f'resumed{workers}',
        }
        cfg = launch.load_config(arguments(config, work_dir=str(work_dir), cfg_options=options))
        launch.set_resume(cfg, 'auto')
        resumed_losses, resumed_state = history(launch.train(cfg))
        assert resumed_losses == losses
        assert len(resumed_state) == len(state)
        for value, expected in zip(resumed_state, state, strict=True):
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected


def test_a_run_without_any_object_trains_the_image_loss(config):
    store = ProposalStore.load(config.parent / 'proposals.npz')
    bare = [(i, store.file_name(i), store.size(i), []) for i in store.image_ids.tolist()]
    ProposalStore(bare).save(config.parent / 'proposals.npz')
    scaled = {'optim_wrapper.clip_grad': dict(max_norm=1.0), 'optim_wrapper.accumulative_counts': 2}
    runner = launch.train(launch.load_config(arguments(config, cfg_options=scaled)))
    history = runner.message_hub.log_scalars
    assert history['train/loss_obj'].data[0].tolist() == history['train/loss_intra'].data[0].tolist() == [0.0] * 6
    assert all(0 < loss < 20 for loss in history['train/loss_img'].data[0])
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())


def test_a_resumed_run_does_not_execute_its_checkpoint(config):
    options = {'train_cfg.max_epochs': 2, 'param_scheduler': []}
    launch.train(launch.load_config(arguments(config, cfg_options=options)))
    path, marker = config.parent / 'work' / 'epoch_2.pth', config.parent / 'marker'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta']['config'] = f'open({str(marker)!r}, "w")'
    torch.save(checkpoint, path)
    cfg = launch.load_config(arguments(config))
    launch.set_resume(cfg, str(path))
    assert launch.train(cfg).iter == 6
    assert not marker.exists()


def test_running_statistics_move(config):
    runner = launch.train(launch.load_config(arguments(config, cfg_options={'train_cfg.max_epochs': 1})))
    assert not torch.equal(runner.model.backbone.bn1.running_mean, torch.zeros(8))


def test_work_dir_is_named_after_the_config(config):
    assert launch.load_config(arguments(config, work_dir=None)).work_dir == './work_dirs/small'


def test_options_replace_settings(config):
    cfg = launch.load_config(arguments(config, cfg_options={'model.queue_len': 7}))
    assert cfg.model.queue_len == 7


def test_an_absent_config_is_one_line(tmp_path):
    with pytest.raises(InputError, match='no config file .*absent.py'):
        launch.load_config(arguments(tmp_path / 'absent.py'))


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU mixed precision works')
def test_mixed_precision_without_a_gpu_is_one_line(config):
    with pytest.raises(InputError, match='needs a GPU'):
        launch.load_config(arguments(config, amp=True))


def test_mixed_precision_does_not_replace_another_wrapper(config):
    with pytest.raises(InputError, match='does not go with optim_wrapper.type=Other'):
        launch.load_config(arguments(config, amp=True, cfg_options={'optim_wrapper.type': 'Other'}))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'train_dataloader.dataset.proposal_file': 'absent.npz'}, r'absent\.npz'),
        ({'train_dataloader.dataset.data_prefix': dict(img_path='absent/')}, 'absent does not exist'),
        ({'train_dataloader.dataset.ann_file': 'absent.json'}, r'absent\.json does not exist'),
    ],
)
def test_absent_data_is_one_line(config, options, message):
    with pytest.raises(InputError, match=message) as caught:
        launch.train(launch.load_config(arguments(config, cfg_options=options)))
    assert '\n' not in str(caught.value)


def test_the_learning_rate_scales_with_the_photos_of_a_step(config):
    changes = {
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'train_cfg.max_epochs': 1,
        'param_scheduler': [],
    }
    cfg = launch.load_config(arguments(config, auto_scale_lr=True, cfg_options=changes))
    assert launch.train(cfg).optim_wrapper.get_lr()['lr'][0] == pytest.approx(0.01 * 4 / 16)
    with pytest.raises(InputError, match='base_batch_size'):
        launch.load_config(arguments(config, auto_scale_lr=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('scope, kept', [('mmselfsup', 1), ('mmdet', 0)])
def test_freed_memory_is_kept_in_pre_training_alone(config, monkeypatch, scope, kept):
    calls = []
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: calls.append('kept'))
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: calls.append('built'))
    monkeypatch.setattr(launch, 'fit_queues', lambda cfg: None)  # asks the data set, of the other scope
    cfg = launch.load_config(arguments(config))
    cfg.default_scope = scope
    with pytest.raises(AttributeError):  # what was built is no runner
        launch.train(cfg)
    assert calls == ['kept'] * kept + ['built']


def test_absent_checkpoints_are_one_line(config):
    cfg = launch.load_config(arguments(config))
    with pytest.raises(InputError, match='no checkpoint nothing.pth to resume from'):
        launch.set_resume(cfg, 'nothing.pth')
    with pytest.raises(InputError, match='no checkpoint nothing.pth'):
        launch.test(cfg, 'nothing.pth')


def test_a_damaged_checkpoint_is_one_line(config):
    damaged = config.parent / 'damaged.pth'
    damaged.write_bytes(b'no zip')
    with pytest.raises(InputError, match=r'damaged\.pth does not read as a checkpoint \(BadZipFile.*newest that reads'):
        launch.set_resume(launch.load_config(arguments(config)), str(damaged))


def test_without_a_checkpoint_the_run_starts_anew(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth'))
    launch.set_resume(cfg, 'auto')
    assert 'resume' not in cfg and cfg.load_from == 'weights.pth'


@pytest.mark.parametrize('own, expected', [(None, 11), (7, 7)])
def test_a_resumed_run_takes_the_seed_of_its_checkpoint(tmp_path, own, expected):
    torch.save(dict(meta=dict(seed=11)), tmp_path / 'epoch_1.pth')
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=own, deterministic=True)))
    launch.set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    assert cfg.randomness == dict(seed=expected, deterministic=True)


def test_pre_training_has_no_test_loop_and_says_so(config):
    checkpoint = config.parent / 'any.pth'
    checkpoint.touch()
    with pytest.raises(InputError, match='inspected by tools/inspect'):
        launch.test(launch.load_config(arguments(config)), str(checkpoint))


@pytest.mark.parametrize('kind', ['CCOPPretrained', 'BackbonePretrained'])
def test_a_resumed_transfer_does_not_ask_for_the_pre_training_checkpoint(kind):
    init = dict(type=kind, checkpoint='gone.pth')
    cfg = Config(dict(work_dir='nowhere', model=dict(init_cfg=init)))
    launch.set_resume(cfg, 'auto')
    assert cfg.model.init_cfg == init, 'nothing to resume from: the run starts anew'
    launch.set_resume(cfg, 'https://host/epoch_1.pth')
    assert cfg.model.init_cfg is None
    cfg = Config(dict(work_dir='nowhere', model=dict(init_cfg=[dict(type='Normal', layer='Conv2d'), init])))
    launch.set_resume(cfg, 'https://host/epoch_1.pth')
    assert cfg.model.init_cfg is None


def test_resume_names_the_checkpoint():
    cfg = Config(dict(work_dir='work'))
    launch.set_resume(cfg, None)
    assert 'resume' not in cfg
    launch.set_resume(cfg, 'https://host/epoch_1.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'https://host/epoch_1.pth')


def test_a_photo_that_cannot_be_read_ends_no_run_of_a_detector():
    path = ROOT / 'configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_random_1x_coco.py'
    cfg = Config.fromfile(path)
    cfg._cfg_dict['test_dataloader'] = cfg._cfg_dict['val_dataloader']  # one object, as a config in Python may have it
    launch._tolerate_bad_photos(cfg, 'train_dataloader', 'redraw')
    launch._tolerate_bad_photos(cfg, 'val_dataloader', 'blank')
    firsts = {loader: cfg[f'{loader}_dataloader'].dataset.pipeline[0] for loader in ('train', 'val', 'test')}
    assert (firsts['train']['type'], firsts['train']['unreadable']) == ('LoadReadableImage', 'redraw')
    assert (firsts['val']['type'], firsts['val']['unreadable']) == ('LoadReadableImage', 'blank')
    assert firsts['test']['type'] == 'LoadImageFromFile', "mmdet's inferencers look for it"
    launch._tolerate_bad_photos(cfg, 'test_dataloader', 'blank')
    assert cfg.test_dataloader.dataset.pipeline[0].unreadable == 'blank'
    voc = Config.fromfile(ROOT / 'configs/transfer/faster_rcnn/faster-rcnn_r50-fpn_random_24k_voc0712.py')
    launch._tolerate_bad_photos(voc, 'train_dataloader', 'redraw')
    parts = voc.train_dataloader.dataset.datasets
    assert [part.pipeline[0].type for part in parts] == ['LoadReadableImage'] * 2
    pretraining = Config(dict(default_scope='mmselfsup', train_dataloader=None))
    launch._tolerate_bad_photos(pretraining, 'train_dataloader', 'redraw')
    assert pretraining.train_dataloader is None
