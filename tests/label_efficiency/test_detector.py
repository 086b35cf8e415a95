"""What a study reads from the config of a detector."""

import json

import pytest
from label_efficiency_data import class_names, write_detector
from mmengine.config import Config

from ccop_mm.label_efficiency.annotations import AnnotationFile
from ccop_mm.label_efficiency.detector import read_study_detector, set_num_classes, strip_checkpoints, unfreeze
from ccop_mm.utils.errors import InputError

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture
def files(study_data):
    """Training and validation data for any detector."""
    return tuple(
        AnnotationFile(str(study_data / f'annotations/instances_{part}.json'), str(study_data / 'images'))
        for part in ('train', 'val')
    )


def test_data_of_the_config(study_data):
    detector = read_study_detector(study_data / 'detector.py')
    assert (len(detector.train.image_ids), len(detector.val.image_ids)) == (20, 6)
    assert detector.train.image_root == str(study_data / 'images')
    assert [category['name'] for category in detector.val.content['categories']] == class_names(study_data)
    assert (detector.batch_size, detector.rate) == (4, 0.01)  # 0.02 is for a batch size of 8
    assert detector.settings['model']['bbox_head']['num_classes'] == len(class_names(study_data))
    assert detector.checkpoints == ()


def test_all_layers_are_trained(study_data):
    detector = read_study_detector(study_data / 'detector.py')
    for model in (detector.settings['model'], detector.random_model):
        assert model['backbone']['frozen_stages'] == -1 and model['backbone']['norm_eval'] is False
        assert model['backbone']['norm_cfg'] == dict(type='BN', requires_grad=True)
        assert model['neck']['norm_cfg'] == dict(type='BN')


def test_defaults_that_freeze_are_replaced():
    model = dict(backbone=dict(type='ResNet', depth=18), neck=[dict(type='FPN', norm_cfg=dict(requires_grad=False))])
    unfreeze(model, 'mmdet')
    assert model['backbone'] == dict(type='ResNet', depth=18, norm_eval=False)  # frozen_stages is -1 by default
    assert model['neck'][0]['norm_cfg']['requires_grad'] is True


def test_class_agnostic(study_data):
    detector = read_study_detector(study_data / 'detector.py', class_agnostic=True)
    assert detector.settings['model']['bbox_head']['num_classes'] == 1
    for part in ('train', 'val'):
        assert detector.settings[f'{part}_dataloader']['dataset']['metainfo'] == dict(classes=('object',))


def test_some_classes_of_the_file(study_data):
    chosen = class_names(study_data)[1:3]
    detector = read_study_detector(write_detector(study_data, chosen))
    names = {category['id']: category['name'] for category in detector.train.content['categories']}
    assert sorted(names.values()) == sorted(chosen)
    assert {entry['category_id'] for entry in detector.train.content['annotations']} <= set(names)


def test_detector_of_mmdet_with_other_data(study_data, files):
    detector = read_study_detector(RETINANET, files)
    classes = tuple(class_names(study_data))
    assert detector.reference == RETINANET
    assert detector.checkpoints == ('torchvision://resnet50',)
    assert detector.settings['model']['bbox_head']['num_classes'] == len(classes)
    assert detector.settings['model']['backbone']['init_cfg']['checkpoint'] == 'torchvision://resnet50'
    assert 'init_cfg' not in detector.random_model['backbone']
    assert detector.rate == 0.01 * 2 / 16
    for part in ('train', 'val'):
        dataset = detector.settings[f'{part}_dataloader']['dataset']
        assert dataset['metainfo'] == dict(classes=classes) and dataset['pipeline'][0]['type'] == 'LoadImageFromFile'
        assert dataset['data_prefix'] == dict(img=f'{study_data / "images"}/')


@pytest.mark.parametrize(
    'config', ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py']
)
def test_wrapped_datasets(config, files):
    detector = read_study_detector(config, files, class_agnostic=True)
    dataset = detector.settings['train_dataloader']['dataset']
    wrapper = dataset['type']
    inner = dataset['dataset']
    assert wrapper in ('RepeatDataset', 'MultiImageMixDataset')
    assert inner['type'].endswith('CocoDataset') and inner['ann_file'] == files[0].path
    assert inner['metainfo'] == dict(classes=('object',))


def test_heads_of_a_cascade(files):
    detector = read_study_detector('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', files, class_agnostic=True)
    heads = detector.settings['model']['roi_head']['bbox_head']
    assert [head['num_classes'] for head in heads] == [1, 1, 1]


def test_checkpoints_are_removed_everywhere():
    random = dict(type='Normal', std=0.01)
    model = dict(
        init_cfg=dict(type='Pretrained', checkpoint='a.pth'),
        backbone=dict(pretrained='b.pth', depth=18, init_cfg=None),
        neck=[dict(init_cfg=[random, dict(type='Pretrained', checkpoint='c.pth')]), dict(init_cfg=random)],
        head=dict(inner=dict(init_cfg=[dict(checkpoint='d.pth')]), pretrained=False),
    )
    stripped, removed = strip_checkpoints(model)
    assert sorted(removed) == ['a.pth', 'b.pth', 'c.pth', 'd.pth']
    assert stripped == dict(
        backbone=dict(depth=18, init_cfg=None),
        neck=[dict(init_cfg=[random]), dict(init_cfg=random)],
        head=dict(inner={}, pretrained=False),
    )


def test_options_override_the_config(study_data):
    detector = read_study_detector(study_data / 'detector.py', options={'train_dataloader.batch_size': 2})
    assert (detector.batch_size, detector.rate) == (2, 0.005)


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ('model = None', 'model'),
        ('train_dataloader = None', 'train_dataloader'),
        ('val_dataloader = None', 'val_dataloader'),
        ("train_dataloader['dataset']['ann_file'] = 'absent.json'", 'absent.json'),
        ("train_dataloader['dataset']['type'] = 'XMLDataset'", 'XMLDataset'),
        ("train_dataloader['dataset']['indices'] = 3", 'indices'),
        ("train_dataloader['dataset']['metainfo'] = dict(classes=('nothing',))", 'differ'),
        (
            "train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[train_dataloader['dataset']] * 2)",
            '2 data',
        ),
        ('optim_wrapper = dict(optimizer=dict())', 'lr'),
        ("optim_wrapper = dict(optimizer=dict(type='SGD', lr=0))", 'lr'),
    ],
)
def test_invalid_configs(change, named, study_data):
    path = study_data / 'detector.py'
    path.write_text(f'{path.read_text()}\n{change}\n')
    with pytest.raises(InputError, match=named):
        read_study_detector(path)


def test_option_is_checked(study_data):
    with pytest.raises(InputError, match='lr'):
        read_study_detector(study_data / 'detector.py', options={'optim_wrapper.optimizer.lr': -1})


def test_model_without_head():
    with pytest.raises(InputError, match='detector.py'):
        set_num_classes(dict(backbone=dict(type='ResNet')), 1, 'mmdet', 'detector.py')


def test_file_is_not_changed(study_data):
    path = study_data / 'annotations/instances_train.json'
    before = json.loads(path.read_text())
    read_study_detector(study_data / 'detector.py', class_agnostic=True)
    assert json.loads(path.read_text()) == before
    assert Config.fromfile(study_data / 'detector.py').model.backbone.frozen_stages == 1
