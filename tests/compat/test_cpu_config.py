"""``prepare_config`` with and without a GPU."""

import mmengine.logging
import pytest
from mmengine import Config

from ccop_mm.compat import check_precision, prepare_config
from ccop_mm.compat import mmengine as patches
from ccop_mm.utils.errors import InputError


def training_config(**changes):
    cfg = Config(
        {
            'model': {
                'type': 'MaskRCNN',
                'backbone': {'type': 'mmdet.ResNet', 'norm_cfg': {'type': 'SyncBN', 'requires_grad': True}},
                'heads': [{'norm_cfg': {'type': 'mmdet.SyncBN'}}, ({'norm': {'type': 'MMSyncBN', 'group': 2}},)],
                'neck': {'type': 'FPN', 'norm_cfg': {'type': 'GN', 'num_groups': 4}},
            },
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}},
            'env_cfg': {'dist_cfg': {'backend': 'nccl', 'timeout': 60}},
            'launcher': 'pytorch',
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(patches, 'runs_on_cpu', lambda: True)


def test_without_gpu(without_gpu, monkeypatch):
    lines = []
    monkeypatch.setattr(mmengine.logging, 'print_log', lambda line, logger: lines.append(line))
    cfg = training_config(sync_bn='torch', find_unused_parameters=True, model_wrapper_cfg={'static_graph': True})
    assert prepare_config(cfg) is cfg
    assert cfg.model.backbone.norm_cfg == {'type': 'BN', 'requires_grad': True}
    assert cfg.model.heads[0].norm_cfg == {'type': 'mmdet.BN'} and cfg.model.heads[1][0].norm == {'type': 'BN'}
    assert cfg.model.neck.norm_cfg == {'type': 'GN', 'num_groups': 4}
    assert cfg.sync_bn is None
    assert cfg.env_cfg.dist_cfg == {'backend': 'gloo', 'timeout': 60}
    assert cfg.model_wrapper_cfg == {
        'type': 'MMDistributedDataParallel',
        'device_ids': None,
        'broadcast_buffers': False,
        'find_unused_parameters': True,
        'static_graph': True,
    }
    before = cfg.pretty_text
    assert prepare_config(cfg).pretty_text == before
    assert len(lines) == 1 and 'SyncBN' in lines[0] and ' 4 ' in lines[0]


def test_norm_of_vectors(without_gpu):
    neck = {'type': 'NonLinearNeck', 'in_channels': 4, 'norm_cfg': {'type': 'SyncBN', 'eps': 0.1}}
    predictor = {'type': 'mmselfsup.NonLinearNeck', 'in_channels': 4}  # SyncBN by default
    cfg = training_config()
    cfg.model.neck, cfg.model.head = neck, {'predictor': predictor}
    prepare_config(cfg)
    assert cfg.model.neck.norm_cfg == {'type': 'BN1d', 'eps': 0.1}
    assert cfg.model.head.predictor.norm_cfg == {'type': 'BN1d'}
    assert cfg.model.backbone.norm_cfg.type == 'BN'


def test_without_launcher(without_gpu):
    assert 'model_wrapper_cfg' not in prepare_config(training_config(launcher='none'))
    assert prepare_config(Config({'model': {'type': 'MoCo'}})).model == {'type': 'MoCo'}  # a minimal config


def test_with_gpu(monkeypatch):
    monkeypatch.setattr(patches, 'runs_on_cpu', lambda: False)
    assert prepare_config(training_config()).pretty_text == training_config().pretty_text


def test_amp_without_gpu_is_an_error(without_gpu):
    with pytest.raises(InputError, match='AmpOptimWrapper.*--amp'):
        check_precision(training_config(**{'optim_wrapper.type': 'AmpOptimWrapper'}))
    check_precision(training_config())
    prepare_config(training_config(**{'optim_wrapper.type': 'AmpOptimWrapper'}))  # of a test
