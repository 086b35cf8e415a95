"""Reads backbone, neck and image preparation from the config of a detector, as pre-training needs them."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.models import DetDataPreprocessor
from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmselfsup.registry import MODELS
from torch import nn

from ccop_mm.models.encoder_layout import EncoderLayout, inspect_encoder
from ccop_mm.preflight.arguments import accepted_arguments, default_argument, find_class, type_name
from ccop_mm.pretrain.detector_file import FORMER_PACKAGE, custom_imports, load_config, locate_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: Arguments of mmdet's backbones that are meant for fine-tuning from supervised weights, with the value for
#: pre-training and the reason. An argument is changed if the class has it and its effective value differs.
FINE_TUNING_ARGUMENTS: dict[str, tuple[Any, str]] = {
    'frozen_stages': (-1, 'all stages are trained'),
    'norm_eval': (False, 'batch statistics are used and updated'),
    'zero_init_residual': (False, 'a short pre-training learns more from it'),
}

#: Arguments of the detector's data preprocessor that decide what the network receives.
PREPROCESSOR_ARGUMENTS = ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'pad_size_divisor', 'pad_value')

#: Scope in which mmdet's configs are written.
DETECTOR_SCOPE = 'mmdet'
#: Scope in which CCOP is built.
PRETRAINING_SCOPE = 'mmselfsup'


@dataclass(frozen=True)
class Change:
    """A setting of the detector that pre-training does not use.

    Args:
        path (str): Dotted path in the model, such as ``'backbone.norm_eval'``.
        old (Any): Value in the detector.
        new (Any): Value in pre-training.
        reason (str): Why it is changed.
    """

    path: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f'{self.path}={self.old!r} of the detector is {self.new!r} in pre-training: {self.reason}'


@dataclass(frozen=True)
class Detector:
    """What pre-training needs from the config of a detector.

    Args:
        reference (str): The config as a ``_base_`` of another one: ``mmdet::...``, or an absolute path.
        title (str): Names of its classes, for messages.
        backbone (dict): Config of the backbone, with qualified types, without pre-trained weights.
        neck (dict | list[dict]): Config of the neck, or of several necks in a row, prepared in the same way.
        data_preprocessor (dict): Arguments of CCOP's data preprocessor: those of :data:`PREPROCESSOR_ARGUMENTS` that
            differ from mmengine's defaults.
        imports (tuple[str, ...]): Modules that the config imports.
        changes (tuple[Change, ...]): Settings of backbone and neck that were changed.
        checkpoint (str | None): Pre-trained weights that the backbone of the detector starts from.
        checkpoint_prefix (str | None): Prefix of the backbone's keys in ``checkpoint``.
        load_from (str | None): Checkpoint of a detector that the config loads.
        overrides (dict): Settings of ``model`` that the fine-tuning config overrides, so that no other weights than
            those of the pre-training are loaded and the types are those of installed packages.
        content (dict | None): The whole config if another one cannot inherit from it by ``_base_``: mmengine does not
            mix configs with ``import`` statements and others.
    """

    reference: str
    title: str
    backbone: dict[str, Any]
    neck: dict[str, Any] | list[dict[str, Any]]
    data_preprocessor: dict[str, Any]
    imports: tuple[str, ...]
    changes: tuple[Change, ...]
    checkpoint: str | None
    checkpoint_prefix: str | None
    load_from: str | None
    overrides: dict[str, Any]
    content: dict[str, Any] | None = None


class Encoder(nn.Module):
    """Backbone and neck under the names that they have in a detector.

    Args:
        backbone (nn.Module): Backbone.
        neck (nn.Module): Neck.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck


def read_detector(config: str | Path) -> Detector:
    """Reads the config of a detector.

    Args:
        config (str | Path): Config file, or ``package::path`` for a config of an installed package, e.g.
            ``mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py``.

    Raises:
        InputError: The file does not exist or is no valid config, the model has no backbone or no neck, a type is not
            registered, or the data preprocessor is of a kind that CCOP cannot reproduce.
    """
    path, reference = locate_config(config)
    cfg = load_config(path)
    model = cfg.get('model')
    if not isinstance(model, Mapping):
        raise InputError(f'{config} has no model: pass the config of a detector')
    model = dict(model)
    if not model.get('backbone'):
        inner = f'; pass the config of its detector ({type_name(model["detector"])})' if model.get('detector') else ''
        raise InputError(f'{config}: {type_name(model) or "the model"} has no backbone{inner}')
    if not model.get('neck'):
        raise InputError(
            f'{config}: {type_name(model)} has no neck; CCOP pre-trains a backbone together with a neck, for example '
            'mmdet.FPN'
        )
    if isinstance(cfg.get('data_preprocessor'), Mapping):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = model.get('_scope_') or cfg.get('default_scope') or DETECTOR_SCOPE
    changes: list[Change] = []
    checkpoint, prefix = _find_checkpoint(model['backbone'])
    backbone = _prepare_module(model['backbone'], 'backbone', scope, changes)
    necks = model['neck'] if isinstance(model['neck'], (list, tuple)) else [model['neck']]
    paths = [f'neck.{number}' for number in range(len(necks))] if necks is model['neck'] else ['neck']
    prepared = [_prepare_module(neck, path, scope, changes) for neck, path in zip(necks, paths, strict=True)]
    classes = [part['type'].rpartition('.')[2] for part in (backbone, *prepared)]
    return Detector(
        reference=reference,
        title=f'{type_name(model)} with {classes[0]} and {" + ".join(classes[1:])}',
        backbone=backbone,
        neck=prepared if necks is model['neck'] else prepared[0],
        data_preprocessor=_prepare_preprocessor(model.get('data_preprocessor'), scope),
        imports=tuple(custom_imports(cfg)),
        changes=tuple(changes),
        checkpoint=checkpoint,
        checkpoint_prefix=prefix,
        load_from=cfg.get('load_from') or None,
        overrides=_overrides(model, backbone),
        content=cfg.to_dict() if Config._is_lazy_import(str(path)) else None,
    )


def _find_checkpoint(module: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Returns the pre-trained weights in the config of a module, and the prefix of its keys in them."""
    for item in _initializers(module):
        if item.get('checkpoint'):
            return item['checkpoint'], item.get('prefix')
    pretrained = module.get('pretrained')
    return (pretrained if isinstance(pretrained, str) else None), None


def _initializers(module: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    init_cfg = module.get('init_cfg') or []
    return list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg]


def _prepare(value: Any, path: str, scope: str, changes: list[Change]) -> Any:
    """Prepares the config of a module, and those of the modules inside it, for pre-training.

    Args:
        value (Any): Part of the detector's config. Parts other than modules are returned unchanged.
        path (str): Its path in the model.
        scope (str): Scope in which its types are resolved.
        changes (list[Change]): Receives the changed settings.

    Returns:
        Any: The part without pre-trained weights and with the settings for pre-training. A type gets a scope if its
        name stands for another class in CCOP's scope.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(_prepare(item, f'{path}.{number}', scope, changes) for number, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    scope = value.get('_scope_') or scope
    module = {key: _prepare(item, f'{path}.{key}', scope, changes) for key, item in value.items() if key != '_scope_'}
    target = find_class(registries.MODELS, value.get('type'), scope) if 'type' in value else None
    if not inspect.isclass(target):
        return module
    if find_class(registries.MODELS, value['type'], PRETRAINING_SCOPE) is not target or not isinstance(
        value['type'], str
    ):
        module['type'] = _qualified_name(target)
    if 'init_cfg' in module and (_find_checkpoint(value)[0] or not module['init_cfg']):
        del module['init_cfg']  # the class initializes randomly without it
    module.pop('pretrained', None)
    if module.get('requires_grad') is False:  # a norm layer
        changes.append(Change(f'{path}.requires_grad', False, True, 'scale and offset are trained'))
        module['requires_grad'] = True
    accepted = accepted_arguments(target) or frozenset()
    for name, (new, reason) in FINE_TUNING_ARGUMENTS.items():
        default = default_argument(target, name)
        # 0 freezes nothing in classes that have it as default (mmpretrain's ConvNeXt), and the stem in others.
        new = 0 if name == 'frozen_stages' and default == 0 else new
        if name in accepted and module.get(name, default) != new:
            changes.append(Change(f'{path}.{name}', module.get(name, default), new, reason))
            module[name] = new
    return module


def _prepare_module(config: Mapping[str, Any], path: str, scope: str, changes: list[Change]) -> dict[str, Any]:
    """Prepares a backbone or a neck, see :func:`_prepare`.

    Raises:
        InputError: Its type is not registered.
    """
    kind = config.get('type')
    if not inspect.isclass(find_class(registries.MODELS, kind, config.get('_scope_') or scope)):
        raise InputError(f'{path}.type={kind!r} is not registered: correct it, or add its module to custom_imports')
    plain = config.to_dict() if hasattr(config, 'to_dict') else copy.deepcopy(dict(config))
    return _prepare(plain, path, scope, changes)


def _qualified_name(target: type) -> str:
    """Returns the registered name of a class with its scope, such as ``'mmdet.ResNet'``."""

    def search(registry: Registry) -> str | None:
        for name, module in registry.module_dict.items():
            if module is target:
                return f'{registry.scope}.{name}'
        found = (search(child) for child in registry.children.values())
        return next((name for name in found if name is not None), None)

    name = search(registries.MODELS)
    if name is None:
        raise InputError(f'{target.__module__}.{target.__name__} is not registered in MODELS: register it')
    return name


def _prepare_preprocessor(config: Any, scope: str) -> dict[str, Any]:
    """Returns the arguments with which CCOP's data preprocessor prepares images as the detector's does.

    Raises:
        InputError: The preprocessor is no ``DetDataPreprocessor``, overrides its ``forward``, or is not for images of
            three channels.
    """
    if not isinstance(config, Mapping):
        raise InputError('the model has no data_preprocessor: set one, such as dict(type="DetDataPreprocessor", ...)')
    target = find_class(registries.MODELS, config.get('type'), scope)
    is_known = inspect.isclass(target) and issubclass(target, DetDataPreprocessor)
    if not is_known or target.forward is not DetDataPreprocessor.forward:
        raise InputError(
            f'data_preprocessor.type={config.get("type")!r} prepares images in another way than DetDataPreprocessor, '
            'which CCOP does not reproduce: pass a config with a DetDataPreprocessor'
        )
    arguments = {name: config[name] for name in PREPROCESSOR_ARGUMENTS if config.get(name) is not None}
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    for name in ('mean', 'std'):
        if name in arguments and len(arguments[name]) != 3:
            raise InputError(f'data_preprocessor.{name}={arguments[name]}: CCOP pre-trains on images of three channels')
    if arguments.pop('rgb_to_bgr', False):  # either argument reverses the channels
        arguments['bgr_to_rgb'] = True
    defaults = dict(bgr_to_rgb=False, pad_size_divisor=1, pad_value=0)
    return {name: value for name, value in arguments.items() if value != defaults.get(name, ...)}


def _overrides(model: Mapping[str, Any], backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the fine-tuning config overrides in the detector's model."""
    own, changed = model['backbone'], {}
    if _find_checkpoint(own)[0] is not None or own.get('pretrained'):
        name = 'pretrained' if own.get('pretrained') else 'init_cfg'
        changed[name] = False if own.get(name) is True else None
    if str(own.get('type')).partition('.')[0] in FORMER_PACKAGE.values():
        changed['type'] = backbone['type']
    overrides: dict[str, Any] = {'backbone': changed} if changed else {}
    if 'init_cfg' in model:  # None, too, cannot be merged with a dict
        overrides['init_cfg'] = dict(_delete_=True)
    return overrides


def build_encoder(detector: Detector) -> tuple[Encoder, EncoderLayout]:
    """Builds backbone and neck with random weights, and inspects their outputs.

    Raises:
        InputError: They cannot be built, or their outputs cannot be used.
    """
    encoder = Encoder(_build(detector.backbone), _build(detector.neck))
    return encoder, inspect_encoder(encoder.backbone, encoder.neck)


def _build(config: Any) -> nn.Module:
    name = config['type'] if isinstance(config, Mapping) else ' + '.join(part['type'] for part in config)
    try:
        with DefaultScope.overwrite_default_scope(PRETRAINING_SCOPE):
            # Building a list makes a chain, and may take away keys.
            return MODELS.build(copy.deepcopy(config))
    except Exception as error:  # constructors raise anything
        raise InputError(f'{name} cannot be built: {type(error).__name__}: {single_line(error)}') from error


def check_view(encoder: Encoder, view_size: int) -> None:
    """Checks that an encoder processes views of a size.

    Args:
        encoder (Encoder): Backbone and neck.
        view_size (int): Side of the views in pixels.

    Raises:
        InputError: The forward pass fails.
    """
    image = next(encoder.parameters()).new_zeros(1, 3, view_size, view_size)
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()
            encoder.neck(tuple(encoder.backbone(image)))
    except Exception as error:  # of any layer
        raise InputError(
            f'views of {view_size} px do not fit the backbone and the neck ({single_line(error)}): use another '
            '--view-size'
        ) from error
    finally:
        encoder.train(training)
