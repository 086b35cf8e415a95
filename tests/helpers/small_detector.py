"""A small detection dataset and the config of a detector, for checks that build neither."""

import copy
import json

import cv2
import numpy as np
from mmengine.config import Config

CLASSES = ('cat', 'dog', 'horse')
WIDTH, HEIGHT = 64, 48


def write_dataset(root, num_train=24, num_val=12):
    """Writes ``images/*.jpg``, ``train.json`` and ``val.json`` below ``root`` with three boxes per image."""
    rng = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True)
    for split, count in (('train', num_train), ('val', num_val)):
        images, annotations = [], []
        for number in range(count):
            name = f'{split}{number:03d}.jpg'
            cv2.imwrite(str(root / 'images' / name), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            images.append(dict(id=number + 1, file_name=name, width=WIDTH, height=HEIGHT))
            for _ in range(3):
                width, height = int(rng.integers(6, 24)), int(rng.integers(6, 18))
                box = [int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height)), width, height]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number + 1,
                        category_id=(2, 5, 9)[len(annotations) % 3],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
        categories = [dict(id=id_, name=name) for id_, name in zip((2, 5, 9), CLASSES, strict=True)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'{split}.json').write_text(json.dumps(content))


def edit_json(path, change):
    """Applies a function to the content of a json file, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def detector_config(root, **options):
    """Returns the config of a detector on the dataset of :func:`write_dataset`, with options as on a command line."""
    dataset = dict(
        type='CocoDataset',
        data_root=f'{root}/',
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=8),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(64, 48), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    )
    tested = dict(dataset, ann_file='val.json', test_mode=True)
    loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
    train_loader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
    test_loader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False), dataset=tested)
    evaluator = dict(type='CocoMetric', ann_file=f'{root}/val.json', metric='bbox')
    cfg = Config(
        copy.deepcopy(
            dict(
                default_scope='mmdet',
                custom_imports=dict(imports=['ccop_mm']),
                model=dict(
                    type='FasterRCNN',
                    backbone=dict(type='ResNet', depth=18),
                    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
                    roi_head=dict(
                        type='StandardRoIHead', bbox_head=dict(type='Shared2FCBBoxHead', num_classes=len(CLASSES))
                    ),
                ),
                train_dataloader=train_loader,
                val_dataloader=test_loader,
                test_dataloader=test_loader,
                val_evaluator=evaluator,
                test_evaluator=evaluator,
                train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1),
                val_cfg=dict(type='ValLoop'),
                test_cfg=dict(type='TestLoop'),
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
            )
        )
    )
    cfg.merge_from_dict(options)
    return cfg
