import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from torch.utils.data import DataLoader

from ccop_mm.engine.data_config import check_data_paths, fit_worker_options, tolerate_unreadable_images
from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def loader(**dataset):
    return ConfigDict(dataset=dict(type='CocoDataset', **dataset))


def config(part, data, evaluators=None):
    return Config({f'{part}_dataloader': data, f'{part}_evaluator': evaluators})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'instances.json').touch()
    return tmp_path


def test_existing_paths_pass(folder):
    data = loader(data_root=f'{folder}/', ann_file='instances.json', data_prefix=dict(img='images/'))
    check_data_paths(config('val', data, dict(ann_file=f'{folder}/instances.json')), 'val')
    check_data_paths(config('val', None, dict(ann_file='absent.json')), 'val')


@pytest.mark.parametrize('paths', [dict(ann_file='absent'), dict(data_prefix=dict(img='absent'))])
@pytest.mark.parametrize('wrapped', [False, True])
def test_missing_paths_are_reported(folder, paths, wrapped):
    data = loader(data_root=f'{folder}/', **paths)
    if wrapped:
        data = ConfigDict(dataset=dict(type='RepeatDataset', dataset=data.dataset))
    with pytest.raises(InputError, match=re.escape(f'{folder}/absent')) as caught:
        check_data_paths(config('test', data), 'test')
    assert '\n' not in str(caught.value) and 'test_dataloader.dataset' in str(caught.value)


@pytest.mark.parametrize(
    'transforms, loads',
    [
        ([dict(type='LoadAnnotations', with_mask=True)], False),
        ([dict(type='LoadAnnotations', with_seg=True)], True),
        ([dict(type='mmdet.LoadPanopticAnnotations')], True),
        ([dict(type='LoadMySegmentation')], True),
        (None, False),
    ],
)
def test_segmentation_maps_are_only_needed_if_they_are_read(folder, transforms, loads):
    prefix = dict(img='images/', seg='absent/')
    data = loader(data_root=f'{folder}/', data_prefix=prefix, pipeline=transforms)
    if not loads:
        check_data_paths(config('train', data), 'train')
        return
    with pytest.raises(InputError, match=re.escape(f'{folder}/absent')):
        check_data_paths(config('train', data), 'train')


def test_missing_annotations_of_evaluators_are_reported(folder):
    evaluators = [ConfigDict(type='DumpResults'), ConfigDict(ann_file=f'{folder}/absent.json')]
    for given in (evaluators, evaluators[1]):
        with pytest.raises(InputError, match=re.escape(f'{folder}/absent.json')):
            check_data_paths(config('val', loader(), given), 'val')


def test_remote_paths_are_not_checked():
    for data, evaluator in (
        (loader(data_root='s3://bucket/', ann_file='a.json', data_prefix=dict(img='images/')), None),
        (loader(data_prefix=dict(img='absent/'), backend_args=dict(backend='petrel')), None),
        (loader(), dict(ann_file='s3://bucket/a.json')),
    ):
        check_data_paths(config('train', data, evaluator), 'train')


def test_detectors_tolerate_unreadable_images():
    cfg = Config.fromfile(ROOT / 'configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_random_1x_coco.py')
    cfg._cfg_dict['test_dataloader'] = cfg._cfg_dict['val_dataloader']  # one object, as a Python config may define it
    tolerate_unreadable_images(cfg, 'train_dataloader', 'redraw')
    tolerate_unreadable_images(cfg, 'val_dataloader', 'blank')
    first = {loader: cfg[f'{loader}_dataloader'].dataset.pipeline[0] for loader in ('train', 'val', 'test')}
    assert (first['train']['type'], first['train']['unreadable']) == ('LoadReadableImage', 'redraw')
    assert (first['val']['type'], first['val']['unreadable']) == ('LoadReadableImage', 'blank')
    assert first['test']['type'] == 'LoadImageFromFile', "mmdet's inferencers search for this name"
    tolerate_unreadable_images(cfg, 'test_dataloader', 'blank')
    assert cfg.test_dataloader.dataset.pipeline[0].unreadable == 'blank'


def test_all_concatenated_datasets_tolerate_unreadable_images():
    cfg = Config.fromfile(ROOT / 'configs/transfer/faster_rcnn/faster-rcnn_r50-fpn_random_24k_voc0712.py')
    tolerate_unreadable_images(cfg, 'train_dataloader', 'redraw')
    datasets = cfg.train_dataloader.dataset.datasets
    assert [dataset.pipeline[0].type for dataset in datasets] == ['LoadReadableImage'] * 2


def test_other_scopes_and_missing_loaders_are_unchanged():
    pipeline = [dict(type='LoadImageFromFile')]
    cfg = Config(dict(default_scope='mmselfsup', train_dataloader=loader(pipeline=pipeline), val_dataloader=None))
    tolerate_unreadable_images(cfg, 'train_dataloader', 'redraw')
    assert cfg.train_dataloader.dataset.pipeline == pipeline
    cfg.default_scope = 'mmdet'
    tolerate_unreadable_images(cfg, 'val_dataloader', 'blank')
    assert cfg.val_dataloader is None


@pytest.mark.parametrize('num_workers', [0, 2])
def test_worker_options_need_workers(num_workers):
    options = dict(persistent_workers=True, prefetch_factor=4, multiprocessing_context='fork', pin_memory=False)
    cfg = Config(dict(train_dataloader=dict(num_workers=num_workers, **options), val_dataloader=None))
    fit_worker_options(cfg)
    assert cfg.train_dataloader == dict(num_workers=num_workers, **(options if num_workers else dict(pin_memory=False)))


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*.py')), ids=lambda path: path.stem)
def test_every_config_accepts_no_workers(path):
    cfg = Config.fromfile(path)
    loaders = [name for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)]
    cfg.merge_from_dict({f'{name}.num_workers': 0 for name in loaders})
    fit_worker_options(cfg)
    for name in loaders:
        options = ('num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory', 'batch_size')
        DataLoader([0], **{option: cfg[name][option] for option in options if option in cfg[name]})
