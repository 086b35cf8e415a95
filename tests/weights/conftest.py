"""Detectors, CCOP models and checkpoints for tests of weights."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from mmselfsup.registry import MODELS as SELFSUP_MODELS
from small_mmdet import detector_config, make_encoder  # noqa: F401  fixtures


@pytest.fixture
def build(detector_config):  # noqa: F811
    """Builds a small detector and initializes it as mmengine's Runner does."""

    def build(name, init_cfg, **settings):
        with DefaultScope.overwrite_default_scope('mmdet'):
            detector = MODELS.build({**detector_config(name, **settings), 'init_cfg': init_cfg})
            detector.init_weights()
        return detector

    return build


@pytest.fixture
def save(tmp_path):
    """Saves tensors as a run of mmengine does; returns the path."""

    def save(state, name='epoch_10.pth'):
        torch.save(dict(meta=dict(epoch=10), state_dict=dict(state)), tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def logged(monkeypatch):
    """Collects the log lines of the initializers."""
    lines = []
    for name in ('pretrained', 'encoder_pretrained'):
        monkeypatch.setattr(f'ccop_mm.weights.{name}.print_log', lambda line, logger: lines.append(line))
    return lines


@pytest.fixture
def make_ccop(detector_config):  # noqa: F811
    """Builds CCOP with the backbone and the neck of a small detector, and initializes it as a run does."""

    def make(name, strides=(8, 16, 32), init_cfg=None, seed=0):
        cfg = detector_config(name)
        for part in ('backbone', 'neck'):
            cfg[part]['type'] = f'mmdet.{cfg[part]["type"]}'.replace('mmdet.mmcls', 'mmcls')
            cfg[part].pop('init_cfg', None)
        with DefaultScope.overwrite_default_scope('mmdet'):
            backbone, neck = MODELS.build(cfg.backbone), MODELS.build(cfg.neck)
            features = backbone(torch.zeros(2, 3, 64, 64))
            channels = neck(features)[0].shape[1]
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope('mmselfsup'):
            model = SELFSUP_MODELS.build(
                dict(
                    type='CCOP',
                    backbone=cfg.backbone,
                    neck=cfg.neck,
                    image_projector=dict(type='ProjectionMLP', in_channels=features[-1].shape[1], hid_channels=8),
                    object_projector=dict(type='ProjectionMLP', in_channels=channels * 49, hid_channels=8),
                    object_pool=dict(strides=strides),
                    queue_len=8,
                    init_cfg=init_cfg,
                )
            )
            model.init_weights()
        return model

    return make


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Fails a test that downloads weights, such as those in the detectors' own configs."""

    def fail(address, **options):
        raise AssertionError(f'{address} would be downloaded')

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fail)
