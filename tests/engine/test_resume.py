import pytest
import torch
from mmengine.config import Config

from ccop_mm.engine.resume import set_resume
from ccop_mm.utils.errors import InputError

URL = 'https://host/epoch_1.pth'


def test_none_leaves_config_unchanged():
    cfg = Config(dict(work_dir='work'))
    set_resume(cfg, None)
    assert cfg.to_dict() == dict(work_dir='work')


def test_url_is_set_without_reading_it():
    cfg = Config(dict(work_dir='work'))
    set_resume(cfg, URL)
    assert (cfg.resume, cfg.load_from) == (True, URL)


def test_auto_without_checkpoint_starts_from_scratch(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth'))
    set_resume(cfg, 'auto')
    assert 'resume' not in cfg and cfg.load_from == 'weights.pth'


def test_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r'nothing\.pth') as caught:
        set_resume(Config(dict(work_dir=str(tmp_path))), 'nothing.pth')
    assert str(tmp_path) in str(caught.value), 'the message names the directory with other checkpoints'


def test_damaged_checkpoint(tmp_path):
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(b'not a zip file')
    with pytest.raises(InputError, match=r'damaged\.pth.*BadZipFile') as caught:
        set_resume(Config(dict(work_dir='the_work_dir')), str(damaged))
    assert 'the_work_dir' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('seed, expected', [(None, 11), (7, 7)])
def test_seed_of_checkpoint_is_used_unless_config_sets_one(tmp_path, seed, expected):
    torch.save(dict(meta=dict(seed=11)), tmp_path / 'epoch_1.pth')
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=seed, deterministic=True)))
    set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    assert cfg.randomness == dict(seed=expected, deterministic=True)


@pytest.mark.parametrize('kind', ['CCOPPretrained', 'BackbonePretrained'])
def test_resumed_transfer_does_not_require_pre_training_checkpoint(tmp_path, kind):
    init = dict(type=kind, checkpoint='gone.pth')
    cfg = Config(dict(work_dir=str(tmp_path), model=dict(init_cfg=init)))
    set_resume(cfg, 'auto')
    assert cfg.model.init_cfg == init, 'without a checkpoint, training starts from the pre-trained weights'
    set_resume(cfg, URL)
    assert cfg.model.init_cfg is None
    cfg = Config(dict(work_dir=str(tmp_path), model=dict(init_cfg=[dict(type='Normal', layer='Conv2d'), init])))
    set_resume(cfg, URL)
    assert cfg.model.init_cfg is None
