"""Checks of the config itself: misspelt keys, invalid values, a curriculum without its hook, too slow recipes."""

import importlib.util
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ccop_mm.models.box_jitter import SCSBoxJitter
from ccop_mm.preflight.arguments import (
    COMMON,
    LOADER_ARGUMENTS,
    LOADERS,
    accepted_arguments,
    closest,
    default_argument,
    find_class,
    find_components,
    registered_names,
    takes_only_numbers,
    type_name,
)
from ccop_mm.preflight.findings import Report, format_value
from ccop_mm.utils.run_config import expected_world_size

#: Top-level keys that mmengine, mmdet's tools or this project read, and the types of their values.
_DICT, _LIST, _TEXT = (dict,), (list, tuple), (str,)
TOP_LEVEL: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(inspect.signature(Runner).parameters, _DICT),
    **dict.fromkeys(('val_evaluator', 'test_evaluator', 'param_scheduler'), (*_DICT, *_LIST)),
    **dict.fromkeys(('work_dir', 'load_from', 'launcher', 'default_scope', 'experiment_name', 'runner_type'), _TEXT),
    'custom_hooks': _LIST,
    'log_level': (str, int),
    'resume': (bool,),
    'find_unused_parameters': (bool,),
    'sync_bn': _TEXT,
    'activation_checkpointing': _LIST,
    'efficient_conv_bn_eval': _LIST,
    'init_weights_for_test_or_val': (bool,),
    'detect_anomalous_params': (bool,),
    'tta_pipeline': _LIST,
    **dict.fromkeys(('custom_imports', 'model_wrapper_cfg', 'compile', 'strategy', 'tta_model', 'probe'), _DICT),
}
#: Top-level keys of mmdet 2, which mmengine ignores, and where these settings are now.
FORMER_KEYS = {
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'evaluation': 'train_cfg.val_interval and val_evaluator',
    'fp16': "optim_wrapper.type='AmpOptimWrapper'",
    'resume_from': 'load_from with resume=True, or pass --resume',
}
#: Settings that are whole numbers, and the smallest one that is allowed.
WHOLE_NUMBERS = {
    **dict.fromkeys(('train_cfg.max_epochs', 'train_cfg.max_iters', 'train_cfg.val_interval'), 1),
    **{f'{loader}.batch_size': 1 for loader in LOADERS},
    **{f'{loader}.num_workers': 0 for loader in LOADERS},
    'optim_wrapper.accumulative_counts': 1,
    'auto_scale_lr.base_batch_size': 1,
}
#: Similarity from which an unknown key is taken for a misspelt one. Config files also define variables.
MISSPELT = 0.8

#: Scope in which this project registers its classes, except those of ``ccop_mm.detection``.
OWN_SCOPE = 'mmselfsup'

#: A config for machines without a GPU.
SMALL_CONFIG = 'configs/ccop/ccop_r18_fpn_demo.py'

NORM_LAYERS = frozenset({'BN', 'BN1d', 'BN2d', 'BN3d', 'SyncBN', 'MMSyncBN'})


def check_config(cfg: Config, report: Report) -> None:
    """Checks the keys of a training config and the settings that depend on each other."""
    unused = ('test_',)
    check_keys(cfg, report, unused)
    check_values(cfg, report, unused)
    check_probes(cfg, report)
    check_curriculum(cfg, report)
    check_batch_statistics(cfg, report)
    check_device(cfg, report)


def check_test_config(cfg: Config, report: Report) -> None:
    """Checks the keys of a test config."""
    unused = ('train_', 'val_', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr')
    check_keys(cfg, report, unused)
    check_values(cfg, report, unused)


def check_keys(cfg: Config, report: Report, unused: tuple[str, ...] = ()) -> None:
    """Reports top-level keys, types and arguments that are misspelt.

    Args:
        cfg (Config): Training or test config.
        report (Report): Receives the findings.
        unused (tuple[str, ...]): Prefixes of the keys from which the run builds nothing.
    """
    for key, value in cfg.items():
        if key in FORMER_KEYS:
            report.warning(key, 'a key of mmdet 2, which has no effect', f'set {FORMER_KEYS[key]}')
            continue
        known = None if key in TOP_LEVEL else _misspelt_top_level(key, value)
        if known is not None and cfg.get(known) != value:
            report.error(key, f'{key} is unknown and has no effect', f'rename it to {known}, or choose another name')
    for loader in (loader for loader in LOADERS if not loader.startswith(unused)):
        _check_arguments(loader, cfg.get(loader), LOADER_ARGUMENTS, 'DataLoader', report)
    _check_arguments(
        'randomness', cfg.get('randomness'), accepted_arguments(Runner.set_randomness), 'set_randomness', report
    )
    _check_arguments('auto_scale_lr', cfg.get('auto_scale_lr'), {'enable', 'base_batch_size'}, 'auto_scale_lr', report)
    for component in find_components(cfg):
        if component.path.startswith(unused):
            continue
        kind = component.type
        if kind is None:
            default_hooks = cfg.get('default_hooks') or {}
            hook_names = [name for name, hook in default_hooks.items() if isinstance(hook, dict) and 'type' in hook]
            name = closest(component.path.rpartition('.')[2], hook_names)
            fix = f'did you mean default_hooks.{name}' if name else "set its class with type='...'"
            report.error(component.path, f'{format_value(component.node)} has no type', fix)
            continue
        target = component.find_class()
        if target is None:
            scope, _, name = str(kind).rpartition('.')
            if scope and importlib.util.find_spec(scope.partition('.')[0]) is None:
                report.error(f'{component.path}.type', f'{kind!r} is in a package that is not installed', 'install it')
                continue
            match = closest(name, registered_names(component.registry, scope or component.scope))
            if not scope and find_class(component.registry, f'{OWN_SCOPE}.{name}', component.scope) is not None:
                scope, match = OWN_SCOPE, name
            fix = f'did you mean {scope + "." if scope else ""}{match}' if match else 'add its module to custom_imports'
            report.error(f'{component.path}.type', f'{kind!r} is not registered as a {component.registry.name}', fix)
            continue
        accepted = accepted_arguments(target)
        if accepted is not None:
            owner = getattr(target, '__name__', str(target))
            _check_arguments(component.path, component.node, accepted | component.extra | COMMON, owner, report)


def _check_arguments(path: str, node: Any, accepted: Any, owner: str, report: Report) -> None:
    if not isinstance(node, Mapping) or accepted is None:
        return
    for name in node:
        if name not in accepted:
            match = closest(str(name), accepted - COMMON)
            fix = f'did you mean {path}.{match}' if match else f'remove {path}.{name}'
            report.error(f'{path}.{name}', f'{owner} has no argument {name!r} ({name}={format_value(node[name])})', fix)


def check_values(cfg: Config, report: Report, unused: tuple[str, ...] = ()) -> None:
    """Reports text where a class takes numbers only, and numbers of images, iterations and workers that are too small.

    mmengine and torch would raise a ``TypeError`` or a ``ValueError`` when the run is built, or after its first epoch.

    Args:
        cfg (Config): Training or test config.
        report (Report): Receives the findings.
        unused (tuple[str, ...]): Prefixes of the keys from which the run builds nothing.
    """
    for path, minimum in WHOLE_NUMBERS.items():
        parent, _, name = path.partition('.')
        node = cfg.get(parent)
        value = node.get(name) if isinstance(node, Mapping) and not path.startswith(unused) else None
        if value is not None and not _is_whole_number(value, minimum):
            report.error(path, f'is {format_value(value)}', f'set a whole number of at least {minimum}')
    model = cfg.get('model')
    for name in ('queue_len', 'object_queue_len') if type_name(model) == 'CCOP' else ():
        length = model.get(name)
        if length not in (None, 'auto') and not _is_whole_number(length, 1):
            report.error(f'model.{name}', f'is {format_value(length)}', "set a whole number of at least 1, or 'auto'")
    hooks = cfg.get('custom_hooks') or []
    if isinstance(hooks, str):
        report.error('custom_hooks', f'is the text {hooks!r}', f'write [{_as_hook(hooks)}]')
    else:
        for number, hook in enumerate(hooks):
            if isinstance(hook, str):
                report.error(f'custom_hooks.{number}', f'is the text {hook!r}', f'write {_as_hook(hook)}')
    for component in find_components(cfg):
        target = None if component.path.startswith(unused) else component.find_class()
        for name, value in component.node.items() if target is not None else ():
            path = f'{component.path}.{name}'
            if isinstance(value, str) and path not in WHOLE_NUMBERS and takes_only_numbers(target, name):
                report.error(path, f'is the text {value!r}', 'write a number')
            elif path == 'optim_wrapper.optimizer.lr' and isinstance(value, (int, float)) and not 0 <= value < math.inf:
                report.error(path, f'is {value}', 'write a number that is not negative')


def _is_whole_number(value: Any, minimum: int) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and float(value).is_integer() and value >= minimum


def _as_hook(text: str) -> str:
    """Returns how to write a hook that a user wrote as text."""
    return f'dict(type={text!r})' if text.isidentifier() else "a dict such as dict(type='EMAHook')"


def check_probes(cfg: Config, report: Report) -> None:
    """Reports annotations and image folders of probes that do not exist."""
    for component in find_components(cfg):
        if str(component.type).rpartition('.')[2] != 'ProbeHook':
            continue
        for name, exists, kind in (('ann_file', os.path.isfile, 'file'), ('img_root', os.path.isdir, 'folder')):
            value = component.node.get(name)
            if isinstance(value, str) and not exists(value or '.'):
                report.error(f'{component.path}.{name}', f'{kind} {value} does not exist', 'correct the path')


def _misspelt_top_level(key: str, value: Any) -> str | None:
    """Returns the known top-level key that an unknown one is probably meant to be, or None if it is a variable."""
    candidates = [name for name, types in TOP_LEVEL.items() if isinstance(value, types)]
    known = closest(key, candidates, MISSPELT)
    if known is None or f'_{known}_' in f'_{key}_':  # base_optim_wrapper or custom_hooks_extra is a variable
        return None
    stem, _, ending = key.rpartition('_')
    known_stem, _, known_ending = known.rpartition('_')
    # conv_cfg is not env_cfg, and train_pipeline is not tta_pipeline.
    return None if ending == known_ending and closest(stem, [known_stem]) is None else known


def check_options(cfg: Config, options: Mapping[str, Any], report: Report) -> None:
    """Checks ``--cfg-options`` against the config that they change.

    Arguments of hooks, datasets and other parts that mmengine builds are left to :func:`check_keys`.

    Args:
        cfg (Config): Config without the options.
        options (Mapping[str, Any]): Values by dotted path.
        report (Report): Receives the findings.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    checked = {component.path for component in find_components(cfg)} | {*LOADERS, 'randomness', 'auto_scale_lr'}
    for path, value in options.items():
        first, *rest = path.split('.')
        if first not in TOP_LEVEL:
            _check_top_level_option(cfg, path, first, report)
            continue
        node, parent, in_list = cfg.get(first), first, False
        if node is None and first not in cfg:
            continue
        for name in rest:
            where = f'--cfg-options {path}'
            if isinstance(node, (list, tuple)):
                if not name.isdigit() or int(name) >= len(node):
                    report.error(
                        where,
                        f'{parent} is a list of {len(node)} elements and has no element {name!r}',
                        f'use a number from 0 to {len(node) - 1}' if node else 'set the whole list',
                    )
                    break
                node, in_list = node[int(name)], True
            elif isinstance(node, Mapping):
                if name not in node:
                    if parent not in checked and f'{parent}.type' not in options:
                        _check_new_key(node, parent, name, where, scope, report)
                    break
                node, in_list = node[name], False
            else:
                fix = f'set {parent} as a whole, with _delete_=True'
                report.error(where, f'{parent} is {format_value(node)} and has no {name!r}', fix)
                break
            parent = f'{parent}.{name}'
        else:
            # mmengine merges dicts only.
            if in_list and not (isinstance(value, dict) and isinstance(node, dict)):
                what = f'{path} is an element of a list, which cannot be replaced'
                report.error(f'--cfg-options {path}', what, f'set {path.rpartition(".")[0]} as a whole')
            elif isinstance(value, dict) and not isinstance(node, (dict, list)) and '_delete_' not in value:
                what = f'{path} is {format_value(node)}, with which a dict cannot be merged'
                report.error(f'--cfg-options {path}', what, 'add _delete_=True to the dict')


def _check_top_level_option(cfg: Config, path: str, key: str, report: Report) -> None:
    where = f'--cfg-options {path}'
    if key in cfg:
        report.warning(
            where,
            f'{key} is a variable of the config file: changing it after the file was read has no effect',
            'set the fields that use it, such as train_dataloader.dataset.*',
        )
        return
    if key in FORMER_KEYS:
        report.error(where, f'{key} is a key of mmdet 2, which has no effect', f'set {FORMER_KEYS[key]}')
        return
    match = closest(key, [*TOP_LEVEL, *cfg], MISSPELT) or next(_paths_that_end_with(path, cfg), None)
    if match is not None:
        report.error(where, f'{key} is unknown', f'did you mean {match}')
    else:
        report.warning(where, f'{key} is unknown and has no effect', 'check the spelling')


def _paths_that_end_with(ending: str, cfg: Config) -> Iterator[str]:
    """Yields the paths of a config that end with an incomplete path such as ``max_epochs``, shortest first."""
    level: list[tuple[str, Any]] = [(key, cfg[key]) for key in cfg if key in TOP_LEVEL]
    while level:
        yield from (path for path, _ in level if path.endswith(f'.{ending}'))
        level = [
            (f'{path}.{name}', part) for path, node in level if isinstance(node, Mapping) for name, part in node.items()
        ]


def _check_new_key(node: Mapping, parent: str, name: str, where: str, scope: str, report: Report) -> None:
    """Checks a key that an option adds to a part of the config that :func:`check_keys` does not check."""
    owner = parent.rpartition('.')[2]
    # norm_cfg and similar parts have keys that are read before the class is called.
    if 'type' in node and not owner.endswith('_cfg'):
        for registry in (registries.MODELS, registries.TASK_UTILS, registries.TRANSFORMS):
            accepted = accepted_arguments(target) if (target := find_class(registry, node['type'], scope)) else None
            if accepted is not None:
                if name not in accepted | COMMON:
                    match = closest(name, accepted)
                    fix = f'did you mean {parent}.{match}' if match else 'remove it'
                    report.error(where, f'{type_name(node)} has no argument {name!r}', fix)
                return
    match = closest(name, list(node), MISSPELT)
    if match is not None:
        report.warning(where, f'{parent} has no {name!r}', f'did you mean {parent}.{match}')


def check_curriculum(cfg: Config, report: Report) -> None:
    """Reports a CCOP whose noise changes during the training but whose hooks lack ``SpatialCurriculumHook``."""
    model = cfg.get('model')
    if type_name(model) != 'CCOP' or not _changes_noise(model.get('box_jitter') or {}):
        return
    custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if isinstance(hook, Mapping)]
    default_hooks = [hook for hook in (cfg.get('default_hooks') or {}).values() if isinstance(hook, Mapping)]
    if any(type_name(hook) == 'SpatialCurriculumHook' for hook in [*custom_hooks, *default_hooks]):
        return
    # ccop_mm.engine.default_hooks has appended StopHook.
    own = ''.join(f', {_as_code(hook)}' for hook in custom_hooks if type_name(hook) != 'StopHook')
    report.error(
        'custom_hooks',
        'the list replaces that of the base config and lacks SpatialCurriculumHook, so the noise of the key boxes '
        'would stay at its start',
        f'write custom_hooks = [*_base_.custom_hooks{own}]',
    )


def _changes_noise(jitter: Mapping) -> bool:
    """Returns whether the noise of ``SCSBoxJitter`` depends on the progress of the training."""
    defaults = inspect.signature(SCSBoxJitter).parameters
    values = {name: jitter.get(name, defaults[name].default) for name in ('noise', 'noise_wh', 'min_iou')}
    noise = [values['noise'], values['noise_wh'] or values['noise']]
    try:
        if any(start != end for start, end in noise):
            return True
        start, end = values['min_iou']
        return start != end and any(size != 0 for size, _ in noise)
    except (TypeError, ValueError):  # no pairs, which the constructor refuses
        return False


def _as_code(value: Any) -> str:
    """Formats a value as in a config file."""
    if isinstance(value, Mapping):
        return f'dict({", ".join(f"{key}={_as_code(item)}" for key, item in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(_as_code, value))}]'
    return repr(value)


def check_batch_statistics(cfg: Config, report: Report) -> None:
    """Warns of a detector that trains batch normalization with one image per group of batch statistics."""
    loader = cfg.get('train_dataloader')
    if not loader or loader.get('batch_size', 1) != 1 or cfg.get('default_scope') != 'mmdet':
        return
    distributed = (expected_world_size(cfg) or 1) > 1
    path = _trained_norm(cfg.get('model'), 'model', cfg.get('default_scope'), distributed)
    if path is not None:
        report.warning(
            'train_dataloader.batch_size=1',
            f'{path} trains batch normalization with the statistics of a single image',
            'use a batch size of at least 2 per process, SyncBN on several GPUs, or norm_eval=True in the backbone',
        )


def _trained_norm(node: Any, path: str, scope: str, distributed: bool) -> str | None:
    """Returns the path of the first ``norm_cfg`` whose batch statistics come from one process and are used in training.

    Args:
        node (Any): Part of a model config.
        path (str): Its path.
        scope (str): Scope of the model.
        distributed (bool): Whether SyncBN has other processes to synchronize with.
    """
    if isinstance(node, (list, tuple)):
        parts = [(f'{path}.{number}', part) for number, part in enumerate(node)]
    elif isinstance(node, Mapping):
        norm = type_name(node.get('norm_cfg'))
        synchronized = 'Sync' in norm and distributed
        if norm in NORM_LAYERS and not synchronized and not _keeps_statistics(node, scope):
            return f'{path}.norm_cfg'
        parts = [(f'{path}.{name}', part) for name, part in node.items() if name != 'norm_cfg']
    else:
        return None
    return next((found for name, part in parts if (found := _trained_norm(part, name, scope, distributed))), None)


def _keeps_statistics(node: Mapping, scope: str) -> bool:
    """Returns whether a backbone has ``norm_eval=True``, as mmdet's have by default."""
    if 'norm_eval' in node:
        return bool(node['norm_eval'])
    return bool(default_argument(find_class(registries.MODELS, node.get('type'), scope), 'norm_eval'))


def check_device(cfg: Config, report: Report) -> None:
    """Warns of a pre-training recipe that would take months on a CPU."""
    model = cfg.get('model')
    depth = (model.get('backbone') or {}).get('depth') if type_name(model) == 'CCOP' else None
    if isinstance(depth, int) and depth >= 50 and get_device() == 'cpu':
        report.warning(
            'model.backbone.depth',
            f'a ResNet-{depth} is pre-trained on the CPU, because no usable GPU was found',
            f'use a machine with a GPU, or {SMALL_CONFIG} to try the steps',
        )
