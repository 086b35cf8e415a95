"""The arguments that the parts of a config accept, from the signatures of the classes that they name."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine import registry as registries
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from torch.utils.data import DataLoader

#: Keys that mmengine reads from any part of a config.
COMMON = frozenset({'type', '_scope_', '_delete_'})

#: Keys that mmengine reads from the config of a data loader besides the arguments of torch's ``DataLoader``.
LOADER_ARGUMENTS = frozenset(inspect.signature(DataLoader).parameters) | {
    *COMMON,
    'disable_subprocess_warning',
    'num_batch_per_epoch',
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

#: Hooks that every training run has, by their key in ``default_hooks``. ``default_hooks = dict(finite_loss=None)``
#: leaves one out.
ALWAYS = {'finite_loss': 'FiniteLossHook', 'first_iteration': 'FirstIterationHook'}
#: The same for CCOP.
PRETRAINING = {'accumulation': 'GradientAccumulationHook'}
#: The same for detectors, also in tests.
DETECTION = {'unreadable_images': 'UnreadableImageHook'}

#: Functions that receive the keyword arguments which a class does not name, by class name.
FORWARDED_TO: dict[str, Callable] = {'CompileHook': torch.compile}

#: Transforms whose ``transforms`` are classes of another library.
FOREIGN_TRANSFORMS = frozenset({'Albu', 'mmdet.Albu'})

#: Parts of a model that its class builds without changing their configs.
MODEL_PARTS = ('data_preprocessor', 'backbone', 'neck', 'rpn_head', 'roi_head', 'bbox_head')
#: The same for CCOP; ``box_jitter`` is a transform.
CCOP_PARTS = ('image_projector', 'object_projector', 'image_head', 'object_head', 'intra_loss')


@dataclass(frozen=True)
class Component:
    """A part of a config from which mmengine builds an object.

    Args:
        path (str): Dotted path, as for ``--cfg-options``.
        node (dict): The part.
        registry (Registry): Where its ``type`` is registered.
        scope (str): Scope in which it is built.
        extra (frozenset[str]): Keys that are read before the constructor is called.
        default_type (str, optional): Type if the part has none.
    """

    path: str
    node: dict
    registry: Registry
    scope: str
    extra: frozenset[str] = frozenset()
    default_type: str | None = None

    @property
    def type(self) -> Any:
        """Name or class, or None."""
        return self.node.get('type', self.default_type)

    def find_class(self) -> Any:
        """Returns the class or function that ``type`` names, or None if it is not registered."""
        return find_class(self.registry, self.type, self.scope)


def type_name(node: Any) -> str:
    """Returns the ``type`` of a part of a config without its scope, such as ``'CCOP'``; ``''`` if it has none."""
    kind = node.get('type') if isinstance(node, Mapping) else None
    return str(getattr(kind, '__name__', kind or '')).rpartition('.')[2]


def closest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name that is most similar to a misspelt one, or None if none is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return matches[0] if matches else None


def find_class(registry: Registry, kind: Any, scope: str) -> Any:
    """Returns a registered class or function by name, or None if it is not registered.

    Args:
        registry (Registry): Root registry of mmengine.
        kind (Any): Name, with or without a scope; anything else is returned.
        scope (str): Scope in which the name is resolved.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as scoped:
        try:
            return scoped.get(kind)
        except Exception:  # what the import of an unknown module raises
            return None


def default_argument(target: Any, name: str) -> Any:
    """Returns the default value of a constructor's argument.

    Args:
        target (Any): Class; the first of its bases that names the argument determines the value.
        name (str): Argument.

    Returns:
        Any: Default value; None if there is none, or if ``target`` is not a class.
    """
    for cls in inspect.getmro(target) if inspect.isclass(target) else ():
        constructor = vars(cls).get('__init__')
        parameter = None if constructor is None else inspect.signature(constructor).parameters.get(name)
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def takes_only_numbers(target: Any, name: str) -> bool:
    """Returns whether the annotation of a constructor's argument allows numbers and None, but no text.

    Args:
        target (Any): Class; the first of its bases that names the argument determines the annotation.
        name (str): Argument.
    """
    for cls in inspect.getmro(target) if inspect.isclass(target) else ():
        constructor = vars(cls).get('__init__')
        if constructor is None or name not in (_named_parameters(constructor)[0] or ()):
            continue
        try:
            annotation = typing.get_type_hints(constructor).get(name)
        except Exception:  # an annotation may be any expression, also of names that are not imported
            return False
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        allowed = set(typing.get_args(annotation) if is_union else (annotation,))
        return bool(allowed & {int, float}) and allowed <= {int, float, bool, type(None), torch.Tensor}
    return False


def registered_names(registry: Registry, scope: str) -> set[str]:
    """Returns the names that can be written without a scope."""
    names: set[str] = set()
    with registry.switch_scope_and_registry(scope) as scoped:
        current: Registry | None = scoped
        while current is not None:
            names |= set(current.module_dict)
            current = current.parent
    return names


def accepted_arguments(target: Any) -> frozenset[str] | None:
    """Returns the names of the keyword arguments that a class or function accepts, or None if it accepts any.

    If a constructor has ``**kwargs``, the arguments of the base class are included. With several base classes, those of
    all are, because a constructor may call any of them.
    """
    if not inspect.isclass(target):
        return _named_parameters(target)[0]
    names: set[str] = set()
    forwarded_to = FORWARDED_TO.get(target.__name__)
    has_several_bases = is_complete = False
    for cls in target.__mro__:
        has_several_bases |= len(cls.__bases__) > 1
        if '__init__' not in vars(cls):
            continue
        if cls is object:
            return frozenset(names - {'self'}) if is_complete else None
        own, is_open = _named_parameters(vars(cls)['__init__'])
        if own is None:
            return None
        names |= own
        # The kwargs of CheckpointHook are for save_checkpoint, which accepts no others.
        is_complete |= not is_open or cls is CheckpointHook
        if is_complete and not has_several_bases:
            return frozenset(names - {'self'})
        if forwarded_to is not None:
            return frozenset(names | (_named_parameters(forwarded_to)[0] or set())) - {'self'}
    return None


def _named_parameters(function: Any) -> tuple[frozenset[str] | None, bool]:
    """Returns the names of a function's parameters, None if it has no signature, and whether it has ``**kwargs``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None, True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = frozenset(parameter.name for parameter in parameters if parameter.kind in kinds)
    is_open = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return names, is_open


def find_components(cfg: Any) -> Iterator[Component]:
    """Yields the parts of a config whose arguments can be checked.

    Args:
        cfg (mmengine.Config): Training or test config.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    probe = cfg.get('probe') if scope == 'mmselfsup' else None
    if isinstance(probe, dict):  # becomes a hook (ccop_mm.engine.default_hooks)
        yield Component('probe', probe, registries.HOOKS, scope, frozenset({'priority'}), 'mmselfsup.ProbeHook')
    for path, node in _items(cfg, 'default_hooks', 'custom_hooks'):
        if path != 'default_hooks.probe' or not isinstance(probe, dict):
            yield Component(path, node, registries.HOOKS, scope, frozenset({'priority'}))
    for loader in LOADERS:
        yield from _loader_components(cfg.get(loader), loader, scope)
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, dict) and isinstance(wrapper.get('optimizer'), dict):
        yield Component('optim_wrapper.optimizer', wrapper['optimizer'], registries.OPTIMIZERS, scope)
        if wrapper.get('constructor') in (None, 'DefaultOptimWrapperConstructor'):
            extra = frozenset({'constructor', 'paramwise_cfg'})
            yield Component('optim_wrapper', wrapper, registries.OPTIM_WRAPPERS, scope, extra, 'OptimWrapper')
    for path, node in _items(cfg, 'param_scheduler'):
        extra = frozenset({'convert_to_iter_based', 'epoch_length'})
        yield Component(path, node, registries.PARAM_SCHEDULERS, scope, extra)
    yield from _loop_components(cfg, scope)
    for evaluator in ('val_evaluator', 'test_evaluator'):
        for path, node in _items(cfg, evaluator):
            # Without a metric's type, it is a dict of metrics for an Evaluator.
            if 'metrics' not in node or find_class(registries.METRICS, node.get('type'), scope) is not None:
                yield Component(path, node, registries.METRICS, scope)
    if isinstance(cfg.get('log_processor'), dict):
        yield Component(
            'log_processor', cfg['log_processor'], registries.LOG_PROCESSORS, scope, frozenset(), 'LogProcessor'
        )
    if isinstance(cfg.get('model'), dict):
        yield from _model_components(cfg['model'], scope)


def _items(cfg: Any, *keys: str) -> Iterator[tuple[str, dict]]:
    """Yields path and config of each part in a dict of parts, a list of parts, or a single part."""
    for key in keys:
        value = cfg.get(key)
        if isinstance(value, dict) and ('type' in value or key.endswith('_evaluator')):
            yield key, value
        elif isinstance(value, (dict, list, tuple)):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f'{key}.{name}', node) for name, node in pairs if isinstance(node, dict))


def _loop_components(cfg: Any, scope: str) -> Iterator[Component]:
    for key, default_type in (('train_cfg', None), ('val_cfg', 'ValLoop'), ('test_cfg', 'TestLoop')):
        node = cfg.get(key)
        if not isinstance(node, dict):
            continue
        if key == 'train_cfg' and 'by_epoch' in node:
            default_type = 'EpochBasedTrainLoop' if node['by_epoch'] else 'IterBasedTrainLoop'
        if 'type' in node or default_type:
            extra = frozenset({'by_epoch'} if 'type' not in node else ())
            yield Component(key, node, registries.LOOPS, scope, extra, default_type)


def _loader_components(loader: Any, path: str, scope: str) -> Iterator[Component]:
    if not isinstance(loader, dict):
        return
    for key in ('sampler', 'batch_sampler'):
        if isinstance(loader.get(key), dict):
            yield Component(f'{path}.{key}', loader[key], registries.DATA_SAMPLERS, scope)
    yield from _dataset_components(loader.get('dataset'), f'{path}.dataset', scope)


def _dataset_components(dataset: Any, path: str, scope: str) -> Iterator[Component]:
    """Yields a dataset, its wrappers, which ``iterate_datasets`` leaves out, and the transforms of both."""
    if not isinstance(dataset, dict):
        return
    scope = dataset.get('_scope_') or scope
    yield Component(path, dataset, registries.DATASETS, scope)
    yield from _transform_components(dataset.get('pipeline'), f'{path}.pipeline', scope)
    yield from _dataset_components(dataset.get('dataset'), f'{path}.dataset', scope)
    if isinstance(dataset.get('datasets'), (list, tuple)):
        for number, part in enumerate(dataset['datasets']):
            yield from _dataset_components(part, f'{path}.datasets.{number}', scope)


def _transform_components(transforms: Any, path: str, scope: str) -> Iterator[Component]:
    """Yields the transforms of a pipeline, including those inside others."""
    if isinstance(transforms, (list, tuple)):
        for number, part in enumerate(transforms):
            yield from _transform_components(part, f'{path}.{number}', scope)
    elif isinstance(transforms, dict) and 'type' in transforms:
        yield Component(path, transforms, registries.TRANSFORMS, scope)
        if transforms['type'] not in FOREIGN_TRANSFORMS:
            yield from _transform_components(transforms.get('transforms'), f'{path}.transforms', scope)


def _model_components(model: dict, scope: str) -> Iterator[Component]:
    scope = model.get('_scope_') or scope
    yield Component('model', model, registries.MODELS, scope)
    is_ccop = type_name(model) == 'CCOP'
    if is_ccop and isinstance(model.get('box_jitter'), dict):
        yield Component('model.box_jitter', model['box_jitter'], registries.TRANSFORMS, scope)
    for key in (*MODEL_PARTS, *(CCOP_PARTS if is_ccop else ())):
        # A preprocessor without a type is that of the model's class; a neck may be a list.
        for path, node in _items(model, key):
            if 'type' in node:
                yield Component(f'model.{path}', node, registries.MODELS, scope)
