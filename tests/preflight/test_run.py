"""All checks of a training or a test together."""

import pytest
import torch
from small_detector import CLASSES, detector_config

from ccop_mm.preflight import check_test, check_training


@pytest.fixture
def cfg(root):
    """Config of a detector without a model, which accepts any weights."""
    cfg = detector_config(root)
    cfg.model = None
    return cfg


@pytest.fixture
def save(tmp_path, cfg):
    """``save(**content)`` writes a checkpoint of a run after two epochs; returns the path."""

    def save(**content):
        meta = dict(epoch=2, iter=12, cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))
        path = str(tmp_path / 'epoch_2.pth')
        torch.save(dict(meta=meta, state_dict=dict(weight=torch.ones(1)), optimizer={}, **content), path)
        return path

    return save


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files that torch reads."""
    paths = []
    load = torch.load

    def record(path, *args, **kwargs):
        paths.append(str(path))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', record)
    return paths


def test_new_training(cfg):
    report = check_training(cfg)
    assert report.findings == [] and report.seen[:3] == ['24 images', '3 classes', '72 boxes']
    assert not any('resuming' in part for part in report.seen)


def test_initial_weights_are_needed_by_a_new_training_only(cfg, save):
    cfg.model = dict(type='ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='absent.pth'))
    (finding,) = check_training(cfg).errors
    assert finding.where == 'model.init_cfg.checkpoint' and 'absent.pth' in finding.what
    assert not any('absent.pth' in finding.what for finding in check_training(cfg, save()).findings)


def test_resumed_training_reads_its_checkpoint_once(cfg, save, reads):
    path = save()
    cfg.update(resume=True, load_from=path)
    report = check_training(cfg, path)
    assert report.findings == [] and 'resuming after 12 iterations' in report.seen
    assert reads == [path]


def test_resumed_training_has_the_checks_of_weights_data_and_config(cfg, save):
    path = save(ema_state_dict=dict(weight=torch.tensor([float('nan')])))
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.metainfo.classes = cfg.val_dataloader.dataset.metainfo.classes = CLASSES[::-1]
    cfg.train_cfg.max_epoch = 5
    wheres = [finding.where for finding in check_training(cfg, path).errors]
    classes = 'train_dataloader.dataset.metainfo.classes'
    assert wheres == ['train_cfg.max_epoch', path, classes, 'train_dataloader.batch_size']


def test_test_reads_its_checkpoint_once(cfg, save, reads):
    path = save()
    report = check_test(cfg, path)
    assert report.findings == [] and report.seen[:3] == ['12 images', '3 classes', '36 boxes']
    assert reads == [path]


@pytest.mark.parametrize('check', [check_training, check_test])
def test_unreadable_checkpoint_is_one_error(cfg, tmp_path, check):
    path = tmp_path / 'damaged.pth'
    path.write_bytes(b'PK damaged')
    (finding,) = check(cfg, str(path)).findings
    assert finding.where == str(path)


@pytest.mark.parametrize('check', [check_training, check_test])
def test_folder_of_a_sharded_checkpoint_is_not_checked(cfg, tmp_path, check):
    assert check(cfg, str(tmp_path)).findings == []


def test_checkpoint_is_never_executed(cfg, tmp_path, monkeypatch):
    """Every read of a checkpoint is restricted to plain data."""
    settings = []
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: settings.append(kwargs) or load(*args, **kwargs))
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'a.pth')
    check_training(cfg, str(tmp_path / 'a.pth'))
    assert settings and all(kwargs.get('weights_only') for kwargs in settings)
