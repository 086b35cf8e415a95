import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmselfsup.registry import HOOKS, TRANSFORMS
from small_pretraining import config_text
from torch.utils._pytree import tree_flatten

from ccop_mm.engine import launch
from ccop_mm.preflight import PreflightError, Report
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import image_id_from_path

SCHEDULE = """
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
    """Path of the config of a small pre-training run on eight images."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(8):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        boxes = [[x, y, x + 30, y + 30] for x in (0, 30, 60) for y in (0, 40)][: number % 4 + 1]
        entries.append((image_id_from_path(name), name, (70, 90), boxes))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    path = tmp_path / 'small.py'
    transforms = [dict(type='ObjectResizedCrop', size=64), dict(type='ObjectFlip')]
    dataset = dict(data_root=str(tmp_path), proposal_file='proposals.npz')
    path.write_text(config_text(dataset, transforms, queue_len=32, shuffle=True) + SCHEDULE)
    return path


def arguments(config, **changes):
    return {'config': config, 'work_dir': config.parent / 'work', **changes}


@pytest.mark.slow
def test_trains_and_resumes(config):
    assert launch.train(launch.load_config(**arguments(config))).iter == 6
    options = {'train_cfg.max_epochs': 2, 'param_scheduler': []}
    launch.train(launch.load_config(**arguments(config, work_dir=str(config.parent / 'cut'), options=options)))
    cfg = launch.load_config(**arguments(config, work_dir=str(config.parent / 'cut')))
    launch.set_resume(cfg, 'auto')
    resumed = launch.train(cfg)
    assert resumed.iter == 6
    assert resumed.model.encoder_k.steps == 6, 'the key encoder is resumed, not copied from the query encoder'
    assert resumed.model.box_jitter.progress == 5 / 6
    assert torch.load(config.parent / 'cut' / 'epoch_3.pth', weights_only=True)['meta']['epoch'] == 3


def history(runner):
    """Returns all logged losses of a run, and the flattened content of its last checkpoint."""
    # Stops the workers: when the runner is garbage-collected, torch waits five seconds for each of them.
    runner.train_dataloader._iterator = None
    scalars = runner.message_hub.log_scalars
    names = [name for name in scalars if 'loss' in name or name in ('train/lr', 'train/zeta')]
    checkpoint = torch.load(Path(runner.work_dir, 'epoch_3.pth'), weights_only=True)
    state = {name: checkpoint[name] for name in ('state_dict', 'optimizer', 'param_schedulers')}
    return {name: scalars[name].data[0].tolist() for name in names}, tree_flatten(state)[0]


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run_bit_by_bit(config):
    # Without a seed in the config, it must come from the checkpoint. Dropout uses the generator of the process.
    options = {
        'randomness.seed': None,
        'model.image_projector.dropout': 0.1,
        'model.object_projector.dropout': 0.1,
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'experiment_name': 'uninterrupted',
    }
    uninterrupted = launch.train(launch.load_config(**arguments(config, options=options)))
    losses, state = history(uninterrupted)
    assert losses.keys() >= {'train/loss', 'train/loss_img', 'train/loss_obj', 'train/loss_intra', 'train/zeta'}
    assert len(losses['train/loss']) == 6 and len(state) > 200
    for workers in (0, 2):
        work_dir = config.parent / f'resumed{workers}'
        work_dir.mkdir()
        shutil.copy(Path(uninterrupted.work_dir, 'epoch_1.pth'), work_dir)
        options |= {
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': workers > 0,
            'experiment_name': f'resumed{workers}',
        }
        cfg = launch.load_config(**arguments(config, work_dir=str(work_dir), options=options))
        launch.set_resume(cfg, 'auto')
        resumed_losses, resumed_state = history(launch.train(cfg))
        assert resumed_losses == losses
        assert len(resumed_state) == len(state)
        for value, expected in zip(resumed_state, state, strict=True):
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected


@pytest.mark.slow
def test_dataset_without_objects_trains_image_loss(config):
    store = ProposalStore.load(config.parent / 'proposals.npz')
    empty = [(i, store.file_name(i), store.size(i), []) for i in store.image_ids.tolist()]
    ProposalStore(empty).save(config.parent / 'proposals.npz')
    options = {'optim_wrapper.clip_grad': dict(max_norm=1.0), 'optim_wrapper.accumulative_counts': 2}
    runner = launch.train(launch.load_config(**arguments(config, options=options)))
    history = runner.message_hub.log_scalars
    assert history['train/loss_obj'].data[0].tolist() == history['train/loss_intra'].data[0].tolist() == [0.0] * 6
    assert all(0 < loss < 20 for loss in history['train/loss_img'].data[0])
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())


@pytest.mark.slow
def test_resume_does_not_execute_checkpoint(config):
    options = {'train_cfg.max_epochs': 2, 'param_scheduler': []}
    launch.train(launch.load_config(**arguments(config, options=options)))
    path, marker = config.parent / 'work' / 'epoch_2.pth', config.parent / 'marker'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta']['config'] = f'open({str(marker)!r}, "w")'
    torch.save(checkpoint, path)
    cfg = launch.load_config(**arguments(config))
    launch.set_resume(cfg, str(path))
    assert launch.train(cfg).iter == 6
    assert not marker.exists()


def test_running_statistics_move(config):
    runner = launch.train(launch.load_config(**arguments(config, options={'train_cfg.max_epochs': 1})))
    assert not torch.equal(runner.model.backbone.bn1.running_mean, torch.zeros(8))


def test_work_dir_is_named_after_config(config):
    assert launch.load_config(**arguments(config, work_dir=None)).work_dir == './work_dirs/small'


def test_options_override_settings(config):
    cfg = launch.load_config(**arguments(config, options={'model.queue_len': 7}))
    assert cfg.model.queue_len == 7


def test_missing_config(tmp_path):
    with pytest.raises(InputError, match=r'absent\.py'):
        launch.load_config(**arguments(tmp_path / 'absent.py'))


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works with a GPU')
def test_amp_without_gpu(config):
    with pytest.raises(InputError, match='GPU'):
        launch.load_config(**arguments(config, amp=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works with a GPU')
def test_mixed_precision_of_the_config_needs_a_gpu_in_training(config):
    cfg = launch.load_config(**arguments(config, options={'optim_wrapper.type': 'AmpOptimWrapper'}))
    with pytest.raises(InputError, match='AmpOptimWrapper'):
        launch.check(cfg)


def test_amp_does_not_replace_another_optimizer_wrapper(config):
    with pytest.raises(InputError, match=r'--amp .*optim_wrapper\.type=Other'):
        launch.load_config(**arguments(config, amp=True, options={'optim_wrapper.type': 'Other'}))


@pytest.mark.parametrize(
    'options, path',
    [
        ({'train_dataloader.dataset.proposal_file': 'absent.npz'}, 'absent.npz'),
        ({'train_dataloader.dataset.data_prefix': dict(img_path='absent/')}, 'absent'),
        ({'train_dataloader.dataset.ann_file': 'absent.json'}, 'absent.json'),
    ],
)
def test_missing_data(config, options, path):
    with pytest.raises(InputError, match=re.escape(str(config.parent / path))) as caught:
        launch.train(launch.load_config(**arguments(config, options=options)))
    assert '\n' not in str(caught.value)


def test_auto_scale_lr_uses_batch_size(config):
    changes = {
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'train_cfg.max_epochs': 1,
        'param_scheduler': [],
    }
    cfg = launch.load_config(**arguments(config, auto_scale_lr=True, options=changes))
    assert launch.train(cfg).optim_wrapper.get_lr()['lr'][0] == pytest.approx(0.01 * 4 / 16)
    with pytest.raises(InputError, match='base_batch_size'):
        launch.load_config(**arguments(config, auto_scale_lr=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('scope, kept', [('mmselfsup', 1), ('mmdet', 0)])
def test_freed_memory_is_kept_only_in_pre_training(config, monkeypatch, scope, kept):
    calls = []
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: calls.append('kept'))
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: calls.append('built'))
    # The dataset and the hooks are not in the mmdet scope.
    monkeypatch.setattr(launch, 'fit_queues', lambda cfg: None)
    monkeypatch.setattr(launch, 'check_training', lambda cfg, resume: Report())
    cfg = launch.load_config(**arguments(config))
    cfg.default_scope = scope
    with pytest.raises(AttributeError):  # build_runner returns None
        launch.train(cfg)
    assert calls == ['kept'] * kept + ['built']


def test_missing_checkpoint_to_test(config):
    with pytest.raises(InputError, match=r'nothing\.pth'):
        launch.test(launch.load_config(**arguments(config)), 'nothing.pth')


def test_pre_training_config_cannot_be_tested(config):
    checkpoint = config.parent / 'any.pth'
    checkpoint.touch()
    with pytest.raises(InputError, match='test_dataloader'):
        launch.test(launch.load_config(**arguments(config)), str(checkpoint))


def test_value_that_a_constructor_rejects_is_one_line(config):
    cfg = launch.load_config(**arguments(config, options={'model.bn_group': 0}))
    with pytest.raises(InputError, match='bn_group.* 0') as caught:
        launch.train(cfg)
    assert '\n' not in str(caught.value)


def test_auto_scale_lr_counts_accumulated_images(config):
    changes = {
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'optim_wrapper.accumulative_counts': 2,
        'train_cfg.max_epochs': 1,
        'param_scheduler': [],
    }
    cfg = launch.load_config(**arguments(config, auto_scale_lr=True, options=changes))
    runner = launch.train(cfg)
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(0.01 * 2 * 4 / 16)
    # The config that was saved with the run gives the same learning rate.
    (saved,) = Path(runner.work_dir).glob('*.py')
    again = launch.load_config(saved, work_dir=config.parent / 'again')
    assert launch.train(again).optim_wrapper.get_lr()['lr'][0] == pytest.approx(0.01 * 2 * 4 / 16)


@pytest.mark.parametrize('local_rank', ['0', '1'])
def test_findings_are_listed_once_per_machine(config, monkeypatch, local_rank):
    cfg = launch.load_config(**arguments(config, options={'custom_hooks': [dict(type='TrainingHealthHook')]}))
    cfg.launcher = 'pytorch'
    monkeypatch.setenv('LOCAL_RANK', local_rank)
    with pytest.raises(PreflightError) as caught:
        launch.train(cfg)
    assert ('SpatialCurriculumHook' in str(caught.value)) == (local_rank == '0')


def test_summary_is_logged_with_errors(config, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.preflight.findings.print_log', lambda line, *_: lines.append(line))
    with pytest.raises(PreflightError):
        launch.train(
            launch.load_config(**arguments(config, options={'custom_hooks': [dict(type='TrainingHealthHook')]}))
        )
    assert lines[-1].startswith('checked: ') and '1 error,' in lines[-1]


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        ({'default_hooks.checkpoint.intervals': 2}, r'default_hooks\.checkpoint\.intervals.*interval'),
        ({'modle.queue_len': 2}, r'modle.*model'),
        ({'custom_hooks': [dict(type='TrainingHealthHook')]}, 'SpatialCurriculumHook'),
        ({'probe': dict(ann_file='val.json', img_rot='val/')}, r'probe\.img_rot.*img_root'),
    ],
)
def test_errors_in_keys_stop_before_the_first_step(config, options, found, monkeypatch):
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: pytest.fail('the run was started'))
    with pytest.raises(PreflightError, match=found):
        launch.train(launch.load_config(**arguments(config, options=options)))


ERRORS = dict(
    shape=RuntimeError('expected 32 channels\nbut got 16'),
    key=KeyError('absent'),
    file=FileNotFoundError(2, 'No file'),
    memory=RuntimeError('illegal memory access'),
    input=InputError('data.json is damaged'),
    disk=OSError(28, 'No space', 'a.pth'),
)


@HOOKS.register_module()
class RaiseAt(Hook):
    """Raises one of ERRORS in one iteration, as a model whose parts do not fit each other does in the first."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise ERRORS[self.error]


@TRANSFORMS.register_module()
class RaiseKeyError(BaseTransform):
    """Raises an error in a worker of the data loader."""

    def transform(self, results):
        return results['absent']


def failing(config, at, error):
    hooks = [dict(type='SpatialCurriculumHook'), dict(type='RaiseAt', at=at, error=error)]
    return launch.load_config(**arguments(config, options={'custom_hooks': hooks}))


@pytest.mark.parametrize('name', ['shape', 'key', 'file'])
def test_error_in_the_first_iteration_is_one_line(config, name):
    error = ERRORS[name]
    with pytest.raises(InputError, match=type(error).__name__) as caught:
        launch.train(failing(config, 0, name))
    assert '\n' not in str(caught.value) and caught.value.__cause__ is error


def test_error_in_a_worker_is_one_line(config):
    options = {'train_dataloader.num_workers': 1, 'train_dataloader.dataset.pipeline': [dict(type='RaiseKeyError')]}
    with pytest.raises(InputError, match="KeyError: 'absent'") as caught:
        launch.train(launch.load_config(**arguments(config, options=options)))
    assert '\n' not in str(caught.value) and 'Traceback' not in str(caught.value)


def test_later_error_keeps_its_traceback(config):
    with pytest.raises(RuntimeError) as caught:
        launch.train(failing(config, 1, 'memory'))
    assert caught.value is ERRORS['memory']


@pytest.mark.parametrize('name, found', [('input', 'data.json is damaged'), ('disk', 'cannot write a.pth')])
def test_error_with_a_message_of_its_own_keeps_it(config, name, found):
    with pytest.raises(InputError, match=f'^{found}'):
        launch.train(failing(config, 0, name))


def test_probe_key_runs_a_probe(config):
    annotations = [
        dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 40, 30], area=1200, iscrowd=0) for i in range(1, 5)
    ]
    images = [dict(id=i, file_name=f'{i}.png', width=90, height=70) for i in range(1, 5)]
    path = config.parent / 'val.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])))
    probe = dict(ann_file=str(path), img_root=str(config.parent / 'images'), probes=('pointing',), size=64)
    options = {
        'probe': probe,
        'train_cfg.max_epochs': 1,
        'visualizer': dict(type='SelfSupVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
    }
    runner = launch.train(launch.load_config(**arguments(config, options=options)))
    (scalars,) = Path(runner.work_dir).glob('*/vis_data/scalars.json')
    assert '"probe/chance"' in scalars.read_text()


def test_no_workers_with_options_for_workers(config):
    options = {'train_dataloader.persistent_workers': True, 'train_dataloader.prefetch_factor': 2}
    cfg = launch.load_config(**arguments(config, options=options))
    assert not {'persistent_workers', 'prefetch_factor'} & cfg.train_dataloader.keys()


@pytest.mark.parametrize(
    'error', [KeyError('backbone'), TypeError('got an unexpected argument'), AssertionError('odd')]
)
def test_error_of_a_constructor_is_one_line(config, error, monkeypatch):
    def build(cfg):
        raise error

    monkeypatch.setattr(launch.Runner, 'from_cfg', build)
    with pytest.raises(InputError, match=f'{type(error).__name__}.*{error.args[0]}') as caught:
        launch.build_runner(launch.load_config(**arguments(config)))
    assert '\n' not in str(caught.value) and caught.value.__cause__ is error
