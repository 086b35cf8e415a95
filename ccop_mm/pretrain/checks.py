"""Checks of a pre-training config that need no proposals, so that they precede the search for these."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, DefaultScope
from mmselfsup.registry import TRANSFORMS

from ccop_mm.engine.data_config import check_data_paths
from ccop_mm.engine.default_hooks import add_default_hooks
from ccop_mm.evaluation import load_model
from ccop_mm.preflight import check_training
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: Settings without which nothing can be trained.
REQUIRED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
#: Options that another argument replaces, because further settings depend on them.
REPLACED_OPTIONS = {
    'train_cfg.max_epochs': 'pass --epochs, which the learning rate schedule depends on',
    'train_cfg.max_iters': 'pass --epochs, which the learning rate schedule depends on',
    'train_dataloader.batch_size': 'pass --batch-size, which the learning rate depends on',
    'work_dir': 'the checkpoints are saved in the folder of --out',
}


def check_replaced_options(options: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` for options that another argument replaces.

    Args:
        options (Mapping[str, Any]): Values by dotted path; values may be nested.
    """
    for path in _paths(options):
        if path in REPLACED_OPTIONS:
            raise InputError(f'--cfg-options {path}: {REPLACED_OPTIONS[path]}')


def _paths(options: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    for name, value in options.items():
        yield f'{prefix}{name}'
        if isinstance(value, Mapping):
            yield from _paths(value, f'{prefix}{name}.')


def check_pretraining(cfg: Config, with_weights: bool = True) -> None:
    """Checks a pre-training config, also an edited one, and builds everything but the dataset.

    Args:
        cfg (Config): Pre-training config; not modified.
        with_weights (bool): Whether the initial weights are loaded; a run that resumes does not need them.

    Raises:
        InputError: A setting is missing, unknown or invalid, or a file does not exist.
    """
    name = cfg.filename or 'the pre-training config'
    for key in REQUIRED:
        if not isinstance(cfg.get(key), Mapping):
            raise InputError(f'{name} has no {key}: restore it, or delete the file to have it written again')
    if not cfg.train_cfg.get('max_epochs') and not cfg.train_cfg.get('max_iters'):
        raise InputError(f'{name} has no train_cfg.max_epochs: restore it, or delete the file to have it written again')
    checked = copy.deepcopy(cfg)
    if not with_weights:
        checked.model.pop('init_cfg', None)
    check_data_paths(checked, 'train')
    add_default_hooks(checked)
    check_training(checked).raise_errors()
    with DefaultScope.overwrite_default_scope(checked.get('default_scope', 'mmselfsup')):
        model = _build('model', name, lambda: load_model(checked))
        _build('optim_wrapper', name, lambda: build_optim_wrapper(model, checked.optim_wrapper))
        for number, transform in enumerate(_pipeline(checked)):
            path = f'train_dataloader.dataset.pipeline.{number}'
            _build(path, name, functools.partial(TRANSFORMS.build, transform))
        hooks = {f'default_hooks.{key}': hook for key, hook in (cfg.get('default_hooks') or {}).items() if hook}
        hooks |= {f'custom_hooks.{number}': hook for number, hook in enumerate(cfg.get('custom_hooks') or [])}
        for path, hook in hooks.items():
            arguments = {key: value for key, value in hook.items() if key != 'priority'}
            _build(path, name, functools.partial(HOOKS.build, arguments))


def _pipeline(cfg: Config) -> list[dict[str, Any]]:
    return (cfg.train_dataloader.get('dataset') or {}).get('pipeline') or []


def _build(path: str, name: str, build: Callable[[], Any]) -> Any:
    """Calls a function that builds a part of a config; raises :class:`InputError` if it fails."""
    try:
        return build()
    except InputError:
        raise
    except Exception as error:  # constructors raise anything
        raise InputError(
            f'{path} of {name} cannot be built: {type(error).__name__}: {single_line(error)}; correct it, or the '
            '--cfg-options'
        ) from error
