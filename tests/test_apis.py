"""The examples in the docstrings of ccop_mm.apis, run in order in one folder."""

import doctest
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_pretraining import config_text

from ccop_mm import apis
from ccop_mm.utils.errors import InputError
from ccop_mm.weights import read_state_dict

CCOP = (
    config_text(
        dict(data_root='my_images/', data_prefix=dict(img_path=''), proposal_file='../proposals.npz'),
        [dict(type='ObjectResizedCrop', size=64, scale=(0.6, 1.0))],
        queue_len=8,
        norm_cfg=dict(type='BN'),
    )
    + """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook', interval=1))
custom_hooks = [dict(type='SpatialCurriculumHook')]
log_level = 'ERROR'
"""
)

DETECTOR = """
default_scope = 'mmdet'
custom_imports = dict(imports=['ccop_mm'])
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1, init_cfg=None),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='FCOSHead', num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1, strides=[4, 8, 16, 32],
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)), norm_cfg=None,
    ),
    test_cfg=dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        ann_file='my_labels/train.json',
        data_prefix=dict(img='my_labels/'),
        metainfo=dict(classes=('square', 'disc')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(128, 96), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        ann_file='instances.json',
        data_prefix=dict(img='my_images/'),
        metainfo=dict(classes=('square', 'disc')),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 96), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
)
test_evaluator = dict(type='CocoMetric', ann_file='instances.json', metric='bbox')
test_cfg = dict(type='TestLoop')
log_level = 'ERROR'
"""


class LastOutputChecker(doctest.OutputChecker):
    """Compares the end of the output: pycocotools prints its tables before the result."""

    def check_output(self, want, got, optionflags):
        last = ''.join(got.splitlines(keepends=True)[-want.count('\n') :]) if want else ''
        return super().check_output(want, last, optionflags)


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """Folder with 8 images of a square and a disc each, their COCO json and the two configs of the examples."""
    root = tmp_path_factory.mktemp('apis')
    rng = np.random.default_rng(0)
    (root / 'my_images').mkdir()
    images, annotations = [], []
    for number in range(8):
        image = np.full((96, 128, 3), 220, np.uint8)
        x, y = rng.integers(5, 25, 2).tolist()
        colors = rng.integers(0, 180, (2, 3)).tolist()
        cv2.rectangle(image, (x, y), (x + 29, y + 29), colors[0], -1)
        cv2.circle(image, (x + 70, y + 40), 15, colors[1], -1)
        name = f'{number}.png'
        cv2.imwrite(str(root / 'my_images' / name), image)
        images.append(dict(id=number + 1, file_name=name, width=128, height=96))
        for category, box in ((1, [x, y, 30, 30]), (2, [x + 55, y + 25, 31, 31])):
            entry = dict(id=len(annotations) + 1, image_id=number + 1, category_id=category, bbox=box, iscrowd=0)
            annotations.append(dict(entry, area=box[2] * box[3]))
    categories = [dict(id=1, name='square'), dict(id=2, name='disc')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'instances.json').write_text(json.dumps(content))
    (root / 'my_labels').mkdir()
    for split, count in (('train', 12), ('val', 4)):
        labeled = dict(images=[], annotations=[], categories=categories)
        for number in range(1, count + 1):
            source, name = images[number % 8], f'{split}{number}.png'
            shutil.copy(root / 'my_images' / source['file_name'], root / 'my_labels' / name)
            labeled['images'].append(dict(source, id=number, file_name=name))
            entries = [entry for entry in annotations if entry['image_id'] == source['id']]
            labeled['annotations'] += [dict(entry, image_id=number, id=entry['id'] + 100 * number) for entry in entries]
        (root / f'my_labels/{split}.json').write_text(json.dumps(labeled))
    (root / 'my_ccop.py').write_text(CCOP)
    (root / 'my_detector.py').write_text(DETECTOR)
    return root


def test_examples_run_in_order(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    torch.save(apis.load_model('my_detector.py').state_dict(), 'detector.pth')
    names = dict(apis=apis, detector_checkpoint='detector.pth', __name__='examples')
    runner = doctest.DocTestRunner(LastOutputChecker())
    ran = []
    for name in (
        *('generate_proposals', 'train', 'test', 'load_pretrained', 'export_checkpoint', 'pretrain'),
        *('load_model', 'extract_object_features', 'knn_recall', 'pointing_accuracy'),
        'label_efficiency',
    ):  # fmt: skip
        (example,) = doctest.DocTestFinder(recurse=False).find(getattr(apis, name), name, globs=names)
        assert example.examples, f'{name} has no example'
        report = []
        result = runner.run(example, out=report.append, clear_globs=False)
        names = example.globs
        ran.append(name)
        assert result.failed == 0, ''.join(report)
        if name == 'load_pretrained':
            loaded, stored = names['detector'].state_dict(), read_state_dict(names['checkpoint'])
            assert torch.equal(loaded['backbone.conv1.weight'], stored['backbone.conv1.weight'])
    assert sorted(ran) == sorted(apis.__all__)


@pytest.mark.slow
def test_resumed_training_continues_from_its_checkpoint(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    if not (workspace / 'proposals.npz').exists():
        apis.generate_proposals('my_images', 'proposals.npz', progress=False)
    first = apis.train('my_ccop.py', work_dir=tmp_path / 'run', options={'randomness': dict(seed=1)})
    second = apis.train('my_ccop.py', work_dir=tmp_path / 'run', options={'train_cfg.max_epochs': 2}, resume=True)
    assert [path.rsplit('/', 1)[1] for path in (first, second)] == ['epoch_1.pth', 'epoch_2.pth']
    assert read_state_dict(second)['encoder_k._extra_state'] == 4  # two steps per epoch


def test_training_takes_the_options_of_the_tool(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    with pytest.raises(InputError, match='base_batch_size'):
        apis.train('my_ccop.py', work_dir=tmp_path, auto_scale_lr=True)
    with pytest.raises(InputError, match='optim_wrapper.type=Other'):
        apis.train('my_ccop.py', work_dir=tmp_path, options={'optim_wrapper.type': 'Other'}, amp=True)
    assert not any(tmp_path.iterdir())


def test_documentation_lists_every_function():
    text = (Path(__file__).parents[1] / 'docs' / 'api.md').read_text(encoding='utf-8')
    documented = re.findall(r'^\| `(\w+)\(', text, re.MULTILINE)
    assert sorted(documented) == sorted(apis.__all__)
