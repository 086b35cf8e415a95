"""Fixtures of a pre-training run that takes seconds and in which one image may contain a NaN."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from ccop_mm.proposals.store import ProposalStore


def config_text(
    dataset,
    transforms,
    queue_len,
    batch_size=4,
    shuffle=False,
    norm_cfg=None,
    dropout=0.0,
    further_transforms=(),
    imports=('ccop_mm',),
):
    """Returns the first part of a pre-training config: a narrow CCOP, its data and its optimizer.

    ``dataset`` contains the paths, ``transforms`` those of a view; ``further_transforms`` follow them in the pipeline.
    """
    return f"""
default_scope = 'mmselfsup'
custom_imports = dict(imports={list(imports)!r})
model = dict(
    type='CCOP',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1),
    neck=dict(
        type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg={norm_cfg!r}
    ),
    image_projector=dict(type='ProjectionMLP', in_channels=64, hid_channels=32),
    object_projector=dict(type='ProjectionMLP', in_channels=784, hid_channels=32, dropout={dropout}),
    image_head=dict(type='ImageContrastHead', temperature=0.2),
    queue_len={queue_len},
)
train_dataloader = dict(
    batch_size={batch_size},
    num_workers=0,
    sampler=dict(type='EpochIndexSampler', shuffle={shuffle}),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ProposalDataset',
        pipeline=[
            dict(type='LoadUnlabeledImage'),
            dict(type='TwoObjectViews', transforms={list(transforms)!r}),
            *{list(further_transforms)!r},
            dict(type='PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
        ],
        **{dataset!r},
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
"""


#: Second part of the config of :func:`small_config`.
SCHEDULE = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
default_hooks = dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='SpatialCurriculumHook'), dict(type='FiniteLossHook')]
randomness = dict(seed=5)
log_level = 'ERROR'
"""


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """Eight images, 0.png to 7.png with ids 10 to 17, with two to four disjoint proposals each."""
    root = tmp_path_factory.mktemp('small_pretraining')
    rng = np.random.default_rng(0)
    (root / 'images').mkdir()
    entries = []
    for number in range(8):
        name = f'{number}.png'
        cv2.imwrite(str(root / 'images' / name), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        boxes = [[x, y, x + 25, y + 25] for x in (15, 50) for y in (8, 38)][: number % 3 + 2]
        entries.append((10 + number, name, (70, 90), boxes))
    images = [dict(id=image_id, file_name=name) for image_id, name, _, _ in entries]
    (root / 'images.json').write_text(json.dumps(dict(images=images)))
    ProposalStore(entries).save(root / 'proposals.npz')
    return root


@pytest.fixture
def small_config(image_folder, tmp_path, monkeypatch):
    """``small_config(poisoned, work_dir, **options) -> Config`` of a run with four iterations of two images.

    ``poisoned`` is the name of the image that contains a NaN; ``options`` override settings of the config.
    """
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent))  # for poison.py in subprocesses

    def make(poisoned='none', work_dir='work', **options):
        path = tmp_path / 'small.py'
        data = config_text(
            dict(data_root=str(image_folder), ann_file='images.json', proposal_file='proposals.npz'),
            [dict(type='ObjectResizedCrop', size=64, scale=(0.6, 1.0))],
            queue_len=10,
            batch_size=2,
            dropout=0.1,
            further_transforms=[dict(type='PoisonImage', name=poisoned)],
            imports=('ccop_mm', 'poison'),
        )
        path.write_text(data + SCHEDULE)
        cfg = Config.fromfile(path)
        cfg.work_dir = str(tmp_path / work_dir)
        cfg.merge_from_dict(options)
        return cfg

    return make
