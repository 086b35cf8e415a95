"""Adds the hooks that every training run has, and those that other keys of the config describe."""

from mmengine.config import Config, ConfigDict

from ccop_mm.preflight.arguments import type_name
from ccop_mm.utils.errors import InputError

#: Hooks by their key in ``default_hooks``. ``default_hooks = dict(finite_loss=None)`` leaves one out.
ALWAYS = {'finite_loss': 'FiniteLossHook', 'first_iteration': 'FirstIterationHook'}
PRETRAINING = {'accumulation': 'GradientAccumulationHook'}
DETECTION = {'unreadable_images': 'UnreadableImageHook'}


def add_default_hooks(cfg: Config) -> None:
    """Adds hooks to ``default_hooks``, in which a config that lists its own ``custom_hooks`` keeps them.

    - ``FiniteLossHook`` and ``FirstIterationHook``, unless the config lists them; for CCOP also
      ``GradientAccumulationHook``, for detectors ``UnreadableImageHook``.
    - ``ProbeHook`` with the arguments in the key ``probe``.
    - ``IterationSeedHook`` in place of mmengine's ``DistSamplerSeedHook``.
    - ``StopHook`` in ``custom_hooks``, because it must be the last hook.

    Args:
        cfg (Config): Training config, modified in place.

    Raises:
        InputError: ``probe`` is not a dict.
    """
    is_ccop, is_detector = type_name(cfg.get('model')) == 'CCOP', cfg.get('default_scope') == 'mmdet'
    _add_missing(cfg, {**ALWAYS, **(PRETRAINING if is_ccop else {}), **(DETECTION if is_detector else {})})
    probe = cfg.get('probe')
    if probe is not None and cfg.get('default_scope') == 'mmselfsup':
        if not isinstance(probe, dict):
            raise InputError(f"probe must be a dict such as dict(ann_file='val.json', img_root='val/'), got {probe!r}")
        cfg.default_hooks.probe = dict(type='mmselfsup.ProbeHook', **probe)
    seed_hook = cfg.default_hooks.get('sampler_seed', dict(type='DistSamplerSeedHook'))
    if type_name(seed_hook) == 'DistSamplerSeedHook':
        cfg.default_hooks.sampler_seed = dict(type='mmselfsup.IterationSeedHook')
    custom_hooks = list(cfg.get('custom_hooks') or [])
    if 'StopHook' not in map(type_name, custom_hooks):
        cfg.custom_hooks = [*custom_hooks, dict(type='mmselfsup.StopHook')]


def add_test_hooks(cfg: Config) -> None:
    """Adds the hooks of a test run to ``default_hooks``: ``UnreadableImageHook`` for detectors."""
    if cfg.get('default_scope') == 'mmdet':
        _add_missing(cfg, DETECTION)


def _add_missing(cfg: Config, hooks: dict[str, str]) -> None:
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = ConfigDict()
    default_hooks = cfg.default_hooks
    listed = [*default_hooks.values(), *(cfg.get('custom_hooks') or [])]
    names = {type_name(hook) for hook in listed}
    for key, name in hooks.items():
        if key in default_hooks and default_hooks[key] is None:
            del default_hooks[key]  # mmengine accepts None for its own hooks only
        elif name not in names:
            default_hooks[key] = dict(type=f'mmselfsup.{name}')
