"""Checks of the checkpoint that a run tests, resumes from, or starts from with ``load_from``."""

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.models import ResNet
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ccop_mm.preflight.arguments import type_name
from ccop_mm.preflight.checkpoint import RunCheckpoint, read_checkpoint
from ccop_mm.preflight.class_checks import describe_difference, read_classes
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.splits import find_splits
from ccop_mm.utils.text import format_truncated
from ccop_mm.weights.formats import FOREIGN_FORMATS, detect_foreign_format
from ccop_mm.weights.key_mapping import resnet_depth
from ccop_mm.weights.model_fit import ModelFit, compare_with_model, describe_non_finite

#: Number of keys that a line lists.
NUM_EXAMPLES = 3

#: A run with ``load_from`` starts only if at least this fraction of the model's backbone is loaded. The first
#: convolution, or a stage with other layers, may differ on purpose.
MIN_BACKBONE_FRACTION = 0.5


def build_for_comparison(cfg: Config) -> nn.Module | None:
    """Builds the model of a config without memory for its tensors, if possible.

    Args:
        cfg (Config): Config of a run; not modified.

    Returns:
        nn.Module | None: Model on the meta device, or on the CPU if its constructor computes with tensors. None if it
        cannot be built, in which case the run itself reports why.
    """
    if not isinstance(cfg.get('model'), Mapping):
        return None
    settings = copy.deepcopy(cfg.model)
    for name in ('queue_len', 'object_queue_len'):
        if settings.get(name) == 'auto':  # depends on the dataset; loading a checkpoint resizes the queue
            settings[name] = 1
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        for device in ('meta', 'cpu'):
            # A constructor may raise anything; the run builds the model again and reports the error.
            with contextlib.suppress(Exception), torch.device(device):
                return MODELS.build(copy.deepcopy(settings))
    return None


def check_test_weights(cfg: Config, report: Report, checkpoint: RunCheckpoint) -> None:
    """Checks that a checkpoint is that of the tested model: same keys, same shapes, finite values, same classes."""
    check_model_fits(cfg, checkpoint.state, report, checkpoint.path)
    _check_finite(checkpoint.state, report, checkpoint.path)
    check_classes(cfg, 'test', checkpoint, report)


def check_resume_weights(cfg: Config, report: Report, checkpoint: RunCheckpoint) -> None:
    """Checks the model, its averages, the optimizer and the classes of the checkpoint that a run resumes from."""
    state, content = checkpoint.state, checkpoint.content
    check_model_fits(cfg, state, report, checkpoint.path)
    averages = content.get('ema_state_dict') or {}
    optimizer = dict(_tensors(content.get('optimizer'), 'optimizer'))
    _check_finite({**state, **_prefixed(averages, 'ema_state_dict.'), **optimizer}, report, checkpoint.path)
    check_classes(cfg, 'train', checkpoint, report)


def check_initializers(cfg: Config, report: Report) -> None:
    """Checks the files of the initializers, which mmengine opens after it has built the model.

    They must exist. Those of mmengine's ``Pretrained``, which ignores keys that do not fit, must contain at least half
    of the parameters of the initialized part, and finite values; other initializers check this themselves. Remote files
    are not checked. A resumed run does not load them.
    """
    for path, initializer in _initializers(cfg.get('model'), 'model'):
        checkpoint = initializer['checkpoint']
        if '://' in checkpoint:
            continue
        if not Path(checkpoint).is_file():
            what = f'{checkpoint} does not exist'
            report.error(f'{path}.checkpoint', what, 'run the training that writes it first, or set another file')
        elif type_name(initializer) == 'Pretrained':
            _check_pretrained(cfg, path, initializer, report)


def _check_pretrained(cfg: Config, path: str, initializer: Mapping[str, Any], report: Report) -> None:
    """Checks the file of an initializer of type ``Pretrained``.

    Args:
        cfg (Config): Training config.
        path (str): Config path of the initializer.
        initializer (Mapping): The initializer.
        report (Report): Receives the findings.
    """
    checkpoint = read_checkpoint(initializer['checkpoint'], report)
    if checkpoint is None:
        return
    prefix = initializer.get('prefix')
    state = checkpoint.state
    if prefix:
        start = f'{prefix.rstrip(".")}.'
        state = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    _check_finite(state, report, checkpoint.path)
    model = build_for_comparison(cfg)
    module = None
    part = path.rpartition('.init_cfg')[0]
    with contextlib.suppress(AttributeError):  # some models have other names than their config
        module = None if model is None else model.get_submodule(part.partition('.')[2])
    if module is None:
        return
    fit = compare_with_model(module, state)
    names = [name for name, _ in module.named_parameters()]
    loaded = set(names) - {*fit.missing, *fit.reshaped}
    start = '' if part == 'model' else 'backbone.'
    depths = [resnet_depth([start + key for key in keys]) for keys in (state, module.state_dict())]
    if None not in depths and depths[0] != depths[1]:
        what = f'{checkpoint.path} contains a ResNet-{depths[0]}, the model a ResNet-{depths[1]}'
        report.error(path, what, 'set the same depth, or another file')
    elif len(loaded) < MIN_BACKBONE_FRACTION * len(names):
        kept = 'the others would keep random values'
        fix = 'use a file with the weights of this part'
        if not prefix and any(f'backbone.{name}' in state for name in names):
            fix = "set prefix='backbone.'"
        what = f'{checkpoint.path} contains {len(loaded)} of the {len(names)} parameters of {part}, {kept}'
        report.error(path, f'{what}: {"; ".join(describe_differences(fit))}', fix)


def _initializers(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields config path and config of each initializer that loads a checkpoint, in any part of a model."""
    if isinstance(node, Mapping):
        single = node.get('init_cfg')
        listed = [(f'.{number}', part) for number, part in enumerate(single)] if isinstance(single, list) else None
        for suffix, initializer in [('', single)] if listed is None else listed:
            if isinstance(initializer, Mapping) and isinstance(initializer.get('checkpoint'), str):
                yield f'{path}.init_cfg{suffix}', initializer
        for name, part in node.items():
            if name != 'init_cfg':
                yield from _initializers(part, f'{path}.{name}')
    elif isinstance(node, (list, tuple)):
        for number, part in enumerate(node):
            yield from _initializers(part, f'{path}.{number}')


def check_load_from(cfg: Config, report: Report) -> None:
    """Checks the checkpoint of ``load_from``, if a training run starts from one."""
    if cfg.get('load_from') and not cfg.get('resume'):
        checkpoint = read_checkpoint(cfg.load_from, report)
        if checkpoint is not None:
            _check_backbone(cfg, checkpoint.state, report, checkpoint.path)
            _check_finite(checkpoint.state, report, checkpoint.path)


def check_classes(cfg: Config, part: str, checkpoint: RunCheckpoint, report: Report) -> None:
    """Checks that label i of a detector is the class that it was trained with.

    mmengine stores the classes of the training dataset in each checkpoint. Files without them are not checked, nor are
    detectors with text queries, which are tested with any classes.

    Args:
        cfg (Config): Config of a detector.
        part (str): ``'train'`` or ``'test'``.
        checkpoint (RunCheckpoint): Checkpoint that is loaded.
        report (Report): Receives at most one finding: that datasets agree is another check.
    """
    saved = checkpoint.meta.get('dataset_meta')
    metainfo = saved if isinstance(saved, Mapping) else {}
    trained = metainfo.get('classes', metainfo.get('CLASSES'))  # early releases of mmdet 3 wrote the latter
    splits = find_splits(cfg, [part])
    if not isinstance(trained, (list, tuple)) or any(split.config.get('return_classes') for split in splits):
        return
    for split in splits:
        classes = read_classes(split, Report())  # invalid classes are reported by the check of the data
        difference = None if classes is None else describe_difference(classes, trained, checkpoint.path)
        if difference is not None:
            report.error(
                f'{split.key}.metainfo.classes',
                difference,
                f'use the classes of the checkpoint in their order: {format_truncated(list(map(repr, trained)), 20)}',
            )
            return


def check_model_fits(cfg: Config, state: Mapping[str, Any], report: Report, where: str) -> None:
    """Reports an error for each kind of difference between a checkpoint and the model of a config.

    mmengine loads the tensors that match, logs a warning, and leaves the others at their random initialization.
    Counters of BN layers may be missing, as in mmengine, and CCOP's queues may have another length.

    Args:
        cfg (Config): Config of a test or of a resumed run.
        state (Mapping[str, Any]): State dict, see :func:`ccop_mm.weights.checkpoint_file.read_run_checkpoint`.
        report (Report): Receives the findings.
        where (str): Path of the checkpoint.
    """
    model = build_for_comparison(cfg)
    if model is None:
        return
    fit = compare_with_model(model, state)
    if fit:
        report.saw(f'{Path(where).name} with {len(state)} tensors')
        return
    fix = _advise(model, state, fit)
    for line in describe_differences(fit):
        report.error(where, line, fix)


def describe_differences(fit: ModelFit) -> list[str]:
    """Formats one text per kind of difference, with the number of keys and the first of them."""
    texts = []
    if fit.missing:
        texts.append(f'{len(fit.missing)} keys of the model are missing from the checkpoint: {_first(fit.missing)}')
    if fit.unexpected:
        texts.append(f'{len(fit.unexpected)} keys of the checkpoint are not in the model: {_first(fit.unexpected)}')
    if fit.reshaped:
        shapes = [f'{key} is {found}, in the model {expected}' for key, (found, expected) in fit.reshaped.items()]
        texts.append(f'{len(fit.reshaped)} keys of the checkpoint have another shape: {_first(shapes)}')
    if fit.other:
        texts.append(f'{len(fit.other)} keys cannot be loaded: {_first(fit.other)}')
    return texts


def _first(keys: Iterable[str]) -> str:
    """Joins the first key of every part of the model, such as the neck, then the others, up to :data:`NUM_EXAMPLES`."""
    keys = list(keys)
    examples = {key.partition('.')[0]: key for key in reversed(keys)}
    return format_truncated(list(dict.fromkeys([*reversed(examples.values()), *keys])), NUM_EXAMPLES)


def _advise(model: nn.Module, state: Mapping[str, Any], fit: ModelFit) -> str:
    """Returns what to do about a checkpoint that must fit the model completely."""
    keys = model.state_dict().keys()
    if _is_pretraining(state) and not _is_pretraining(keys):
        return (
            'this is a pre-training checkpoint: train a detector from it with '
            "model.init_cfg=dict(type='CCOPPretrained', checkpoint=FILE), and use the checkpoint of that run"
        )
    depths = resnet_depth(state), resnet_depth(keys)
    if None not in depths and depths[0] != depths[1]:
        return f'the checkpoint contains a ResNet-{depths[0]}, the model a ResNet-{depths[1]}: set the same depth'
    if any(key.startswith('_orig_mod.') or '._orig_mod.' in key for key in fit.unexpected):
        return 'save the state dict of the model inside torch.compile, without "_orig_mod."'
    if not fit.missing and not fit.unexpected and all(_is_head(key) for key in fit.reshaped):
        return 'set the heads and the number of classes of the run that wrote the checkpoint'
    return 'use the config of the run that wrote the checkpoint'


def _check_backbone(cfg: Config, state: Mapping[str, Any], report: Report, path: str) -> None:
    """Checks that ``load_from`` loads the backbone; other differences, such as new heads, are warnings."""
    model = build_for_comparison(cfg)
    if model is None:
        return
    fit = compare_with_model(model, state)
    if fit:
        report.saw(f'{Path(path).name} with {len(state)} tensors')
        return
    names = [name for name, _ in model.named_parameters()]
    part = [name for name in names if name.startswith('backbone.')] or names
    absent = {*fit.missing, *fit.reshaped}
    loaded = [key for key in part if key not in absent]
    depths = resnet_depth(state), resnet_depth(model.state_dict())
    shifted = [key for key in fit.reshaped if key.startswith('neck.lateral_convs.')]
    title = 'the backbone' if len(part) < len(names) else 'the model'
    if len(loaded) < MIN_BACKBONE_FRACTION * len(part):
        what = f'load_from loads {len(loaded)} of {len(part)} parameters of {title}'
        report.error(path, f'{what}: {"; ".join(describe_differences(fit))}', _advise_initializer(model, state))
    elif None not in depths and depths[0] != depths[1]:
        what = f'the checkpoint contains a ResNet-{depths[0]}, the model a ResNet-{depths[1]}'
        report.error(path, what, 'set model.backbone.depth, or use another checkpoint')
    elif shifted:
        what = f'the FPN of the checkpoint starts at another level or has another width: {_first(shifted)}'
        fix = "use model.init_cfg=dict(type='CCOPPretrained', checkpoint=FILE), which assigns the levels"
        report.error(path, what, fix if _is_pretraining(state) else 'use a detector with the same FPN')
    else:
        for line in describe_differences(fit):
            report.warning(path, line, 'they are not loaded: use another checkpoint if they should be')


def _advise_initializer(model: nn.Module, state: Mapping[str, Any]) -> str:
    """Returns how to load a checkpoint of which ``load_from`` loads no backbone."""
    keys = set(model.state_dict())
    foreign = detect_foreign_format(state)
    without_prefix = sum(f'backbone.{key}' in keys for key in state)
    resnet = isinstance(getattr(model, 'backbone', None), ResNet)
    if foreign is not None and resnet:
        initializer = 'CCOPPretrained' if any('fpn_lateral' in key for key in state) else 'BackbonePretrained'
        return (
            f'the keys are those of {FOREIGN_FORMATS[foreign].title}: instead of load_from use '
            f"model.init_cfg=dict(type='{initializer}', checkpoint=FILE)"
        )
    if without_prefix > len(state) / 2:
        return (
            'the keys lack the prefix "backbone.": instead of load_from use '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)"
        )
    return 'use the checkpoint of a model with the same backbone'


def _is_pretraining(keys: Iterable[str]) -> bool:
    return any(key.startswith(('encoder_k.', 'image_queue.', 'object_queue.')) for key in keys)


def _is_head(key: str) -> bool:
    return re.match(r'\w*head\.', key) is not None


def _check_finite(state: Mapping[str, Any], report: Report, where: str) -> None:
    problem = describe_non_finite(state)
    if problem:
        report.error(where, problem, 'use a checkpoint that was saved before the run diverged')


def _prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {f'{prefix}{key}': value for key, value in state.items()}


def _tensors(value: Any, name: str) -> Iterable[tuple[str, Tensor]]:
    """Yields the tensors in nested dicts and lists with dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f'{name}.{key}')
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _tensors(item, f'{name}.{number}')
