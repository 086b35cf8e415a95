import pytest
from mmengine.config import Config

from ccop_mm.engine.default_hooks import add_default_hooks, add_test_hooks
from ccop_mm.utils.errors import InputError

SEED = {'sampler_seed': 'mmselfsup.IterationSeedHook'}


def types(cfg):
    return {key: hook['type'] for key, hook in cfg.default_hooks.items()}


def pretraining(**changes):
    return Config(dict(default_scope='mmselfsup', model=dict(type='mmselfsup.CCOP'), **changes))


def test_pretraining_has_guards_without_any_list():
    cfg = pretraining()
    add_default_hooks(cfg)
    assert types(cfg) == {
        'finite_loss': 'mmselfsup.FiniteLossHook',
        'first_iteration': 'mmselfsup.FirstIterationHook',
        'accumulation': 'mmselfsup.GradientAccumulationHook',
        **SEED,
    }


def test_hooks_of_the_config_are_not_doubled():
    cfg = pretraining(
        custom_hooks=[dict(type='FiniteLossHook')], default_hooks=dict(own=dict(type='GradientAccumulationHook'))
    )
    for _ in range(2):
        add_default_hooks(cfg)
        assert types(cfg) == {
            'own': 'GradientAccumulationHook',
            'first_iteration': 'mmselfsup.FirstIterationHook',
            **SEED,
        }


def test_hook_can_be_left_out():
    cfg = pretraining(default_hooks=dict(finite_loss=None, accumulation=None))
    add_default_hooks(cfg)
    assert types(cfg) == {'first_iteration': 'mmselfsup.FirstIterationHook', **SEED}


def test_detectors_have_guards_in_training_and_test():
    cfg = Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN'), probe=3))
    add_test_hooks(cfg)
    assert types(cfg) == {'unreadable_images': 'mmselfsup.UnreadableImageHook'}
    add_default_hooks(cfg)
    assert types(cfg).keys() == {'unreadable_images', 'finite_loss', 'first_iteration', 'sampler_seed'}
    assert cfg.probe == 3, 'a variable of another project'


def test_probe_key_becomes_a_hook():
    cfg = pretraining(probe=dict(ann_file='val.json', img_root='val/', interval=5))
    add_default_hooks(cfg)
    assert cfg.default_hooks.probe == dict(type='mmselfsup.ProbeHook', ann_file='val.json', img_root='val/', interval=5)


def test_probe_key_of_another_type():
    with pytest.raises(InputError, match=r"'val\.json'"):
        add_default_hooks(pretraining(probe='val.json'))


def test_stop_hook_is_last_and_not_mistaken_for_another():
    cfg = pretraining(custom_hooks=[dict(type='EarlyStopHook'), dict(type='TrainingHealthHook')])
    add_default_hooks(cfg)
    assert [hook.type for hook in cfg.custom_hooks][-1] == 'mmselfsup.StopHook' and len(cfg.custom_hooks) == 3
    add_default_hooks(cfg)
    assert len(cfg.custom_hooks) == 3


@pytest.mark.parametrize(
    'seed_hook, expected',
    [
        (dict(type='DistSamplerSeedHook'), 'mmselfsup.IterationSeedHook'),
        (dict(type='OwnSeedHook'), 'OwnSeedHook'),
        (None, None),
    ],
)
def test_iteration_seed_hook_replaces_that_of_mmengine_only(seed_hook, expected):
    cfg = pretraining(default_hooks=dict(sampler_seed=seed_hook))
    add_default_hooks(cfg)
    assert (cfg.default_hooks.sampler_seed or {}).get('type') == expected
